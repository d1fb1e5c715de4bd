import io

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from laconic.store.parts import Part, read_contents
from laconic.store.sketches import FAMILY, Tensor, distance, signature, sketch
from tests.store.models import tuned, weights


def of(tensors, tmp_path):
    """(signature, sketch) of a file of them."""
    save_file(tensors, tmp_path / "a.safetensors")
    file = io.BytesIO((tmp_path / "a.safetensors").read_bytes())
    parts = read_contents(file, len(file.getvalue()), "a.safetensors").parts
    return signature(parts), sketch([Tensor(part, file) for part in parts])


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str
)
def test_distances(tmp_path, dtype):
    base = weights(0, dtype)
    mark, bits = of(base, tmp_path)
    assert distance(bits, bits) == 0
    last = 0.0
    for change in (1e-6, 1e-5, 1e-4, 1e-3):
        other_mark, other = of(tuned(base, change), tmp_path)
        assert other_mark == mark
        assert last <= distance(bits, other) < FAMILY
        last = distance(bits, other)
    assert of(weights(1, dtype), tmp_path)[0] == mark
    assert distance(bits, of(weights(1, dtype), tmp_path)[1]) > FAMILY + 1


def test_a_sketch_is_about_as_far_as_all_bits(tmp_path):
    base, other = weights(0), tuned(weights(0), 1e-4)
    exact = np.mean([
        np.bitwise_count((a.view(torch.uint16) ^ b.view(torch.uint16)).numpy()).mean()
        for a, b in zip(base.values(), other.values())
        if a.ndim == 2
    ])  # fmt: skip
    assert distance(of(base, tmp_path)[1], of(other, tmp_path)[1]) == pytest.approx(exact, abs=0.15)


def test_order_and_files_do_not_matter(tmp_path):
    base = weights(0)
    turned = dict(reversed(base.items()))
    assert of(turned, tmp_path) == of(base, tmp_path)


def test_other_shapes_names_and_dtypes_are_other_architectures(tmp_path):
    base = weights(0)
    mark, _ = of(base, tmp_path)
    assert of({f"model.{n}": t for n, t in base.items()}, tmp_path)[0] != mark
    assert of({n: t.float() for n, t in base.items()}, tmp_path)[0] != mark
    assert of({n: t.flatten() for n, t in base.items()}, tmp_path)[0] != mark


def test_embeddings_that_grew(tmp_path):
    base = {"embed": torch.randn(2000, 64).bfloat16(), "other": torch.randn(90, 80).bfloat16()}
    grown = {**base, "embed": torch.cat([base["embed"], torch.randn(3, 64).bfloat16()])}
    (mark, bits), (other_mark, other) = of(base, tmp_path), of(grown, tmp_path)
    assert mark == other_mark
    assert distance(bits, other) == 0


def test_models_without_floats(tmp_path):
    assert of({"ids": torch.arange(9)}, tmp_path) == (b"", b"")
    assert signature([Part(0, 9)]) == b""
    assert distance(b"", b"") == distance(b"ab", b"abcd") == float("inf")
