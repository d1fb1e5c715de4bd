import pytest
import torch

from laconic.errors import UsageError
from laconic.tune.precision import fast_bf16, products, resolve

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("features", "chosen"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True}, "fp32"), ({}, "fp32")],
)  # fmt: skip
def test_auto_asks_the_processor(monkeypatch, features, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert resolve("auto", CPU) == chosen


def test_auto_without_knowledge_is_fp32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolve("auto", CPU) == "fp32"
    assert resolve("auto", torch.device("meta")) == "fp32"


def test_auto_on_a_gpu_asks_for_hardware(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert not fast_bf16(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert resolve("auto", torch.device("cuda", 0)) == "bf16"


def test_products():
    x = torch.ones(2, 2)
    with products("bf16", CPU):
        assert (x @ x).dtype == torch.bfloat16
        with products("fp32", CPU):
            assert (x @ x).dtype == torch.float32


def test_unknown():
    assert resolve("bf16", CPU) == "bf16"
    with pytest.raises(UsageError, match="fp16"):
        resolve("fp16", CPU)
