"""GPTQModel's GPTQ with its own defaults; see `_common`."""

import time
from pathlib import Path

from _common import run, save_dense
from torch import Tensor


def quantize(model: str, ids: Tensor, bits: int, group: int, out: Path) -> float:
    from gptqmodel import GPTQModel, QuantizeConfig

    settings = QuantizeConfig(bits=bits, group_size=group, sym=True, device="cpu")
    network = GPTQModel.load(model, settings)
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in ids]
    start = time.perf_counter()
    network.quantize(rows, batch_size=1)
    seconds = time.perf_counter() - start
    network.save(str(out / "packed"))
    save_dense(_dense(str(out / "packed")), model, out)
    return seconds


def _dense(packed: str) -> dict[str, Tensor]:
    """The quantized weights as the package itself computes with them."""
    from gptqmodel import BACKEND, GPTQModel

    network = GPTQModel.load(packed, device="cpu", backend=BACKEND.TORCH).model
    state = dict(network.state_dict())
    for name, module in network.named_modules():
        if hasattr(module, "dequantize_weight"):
            state[f"{name}.weight"] = module.dequantize_weight().T
    return state


if __name__ == "__main__":
    run(quantize)
