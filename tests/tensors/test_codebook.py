import pytest
import torch

from laconic.errors import UsageError
from laconic.tensors import Codebook, CodebookQuantizer, Dense
from laconic.tensors.patches import Patches


def by_definition(value: Codebook) -> torch.Tensor:
    """The docstring's formula, weight by weight."""
    rows, columns = value.shape[0], value.shape[1:].numel()
    tables, codes, across = value.tables(), value.codes(), value.patches.grid[1]
    scale = None if value.scale is None else value.scale.dense(torch.float32)
    out = torch.empty(rows, columns)
    for r in range(rows):
        for c in range(columns):
            v, d = divmod(c, value.dim)
            group = r // value.rows_per_group * across + v * value.dim // value.columns_per_group
            out[r, c] = tables[group, int(codes[r, v]), d]
            if scale is not None:
                out[r, c] *= scale[r, c // value.scale_block]
    return out.reshape(value.shape).to(value.dtype)


@pytest.mark.parametrize(
    "settings", [
        {}, {"bits": 3, "dim": 1}, {"bits": 1, "dim": 8}, {"bits": 2, "dim": 4, "scale_block": 3},
        {"bits": 2, "dim": 2, "rows_per_group": 4, "columns_per_group": 6, "entries": "int8"},
        {"bits": 9, "dim": 1, "iterations": 2},
    ],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(7, 13), (5, 3, 2, 2)])
def test_is_what_the_formula_says(settings, shape):
    value = CodebookQuantizer(**settings).quantize(torch.randn(shape))
    assert torch.equal(value.dense(), by_definition(value))


def test_bits_in_memory():
    value = CodebookQuantizer(4, 2).quantize(torch.randn(64, 128))
    assert value.resident_bytes == 64 * 128 * 4 // 8 + 256 * 2 * 2
    assert (value.bits, value.code_per_weight, value.format) == (8, False, "codebook 4 bit d2")
    value = CodebookQuantizer(2, 1, rows_per_group=32).quantize(torch.randn(64, 128))
    assert (value.code_per_weight, value.format) == (True, "codebook 2 bit d1 x 2")


def test_few_values_are_kept_exactly():
    x = torch.tensor([-1.0, 0.5, 2.0])[torch.randint(0, 3, (9, 12))]
    for settings in (
        {"bits": 2, "dim": 1},
        {"bits": 4, "dim": 2},
        {"bits": 2, "rows_per_group": 2},
    ):
        assert torch.equal(CodebookQuantizer(**settings).project(x), x)


def test_often_used_entries_have_low_codes():
    x = torch.cat([torch.full((40,), 5.0), torch.full((20,), -1.0), torch.full((9,), 2.0)])
    codes = CodebookQuantizer(2, 1).quantize(x[None]).codes()[0]
    assert codes[0] == 0 and codes[45] == 1 and codes[-1] == 2


def test_codes_are_those_of_the_nearest_entries():
    x = torch.randn(20, 24)
    value = CodebookQuantizer(2, 4, rows_per_group=10, columns_per_group=8).quantize(x)
    tables, codes = value.tables(), value.codes().long()
    for r in range(20):
        for v in range(6):
            entries = tables[r // 10 * 3 + v // 2]
            lost = (x[r, 4 * v : 4 * v + 4] - entries).square().sum(1)
            assert lost[codes[r, v]] <= lost.min() * (1 + 1e-5)


def test_more_vectors_than_are_looked_at():
    x = torch.randn(64, 96)
    quantizer = CodebookQuantizer(1, 1)
    value = quantizer.quantize(x)  # of 6144 points 512 are looked at
    assert torch.equal(value.dense(), quantizer.quantize(x).dense())
    assert (value.dense() - x).square().mean() < 0.40  # 1 - 2 / pi is 0.363
    ragged = CodebookQuantizer(0.5, 4, iterations=5).quantize(torch.randn(700, 5))
    assert torch.equal(ragged.dense(), by_definition(ragged))


def test_block_scales_and_small_entries():
    x = torch.randn(16, 32) * torch.logspace(-9, 9, 16)[:, None]
    for entries in ("bf16", "int8"):
        quantizer = CodebookQuantizer(4, 2, scale_block=8, entries=entries)
        lost = (quantizer.project(x) - x).square().sum(1) / x.square().sum(1)
        assert lost.max() < 0.05
        value = quantizer.quantize(x)
        assert value.entries.dtype == (torch.int8 if entries == "int8" else torch.bfloat16)
        assert value.scale.shape == (16, 4) and value.scale_block == 8


@pytest.mark.parametrize(
    "settings, match", [
        ({"dim": 5}, "dim"), ({"bits": 9, "dim": 2}, "bits times dim"), ({"bits": 0}, "bits times"),
        ({"bits": 1.3}, "bits times"), ({"rows_per_group": 0}, "rows_per_group"),
        ({"columns_per_group": 3}, "multiple of dim"), ({"columns_per_group": 2.0}, "columns_per"),
        ({"scale_block": -1}, "scale_block"), ({"entries": "fp8"}, "entries"),
        ({"iterations": -1}, "iterations"), ({"iterations": 1.5}, "iterations"),
    ],
)  # fmt: skip
def test_settings(settings, match):
    with pytest.raises(UsageError, match=match):
        CodebookQuantizer(**settings)


def test_patches_that_cannot_be():
    with pytest.raises(UsageError, match="dim must be one of"):
        Patches(4, 4, 5, 1, 3)
    with pytest.raises(UsageError, match="do not fill"):
        Patches(4, 4, 2, 1, 3)


def of(entries=(1, 4, 2), codes=(3, 2), shape=(3, 4), **more) -> Codebook:
    made = torch.zeros(entries) if isinstance(entries, tuple) else entries
    return Codebook.from_codes(
        torch.zeros(codes, dtype=torch.int32), made, shape=torch.Size(shape), dtype=torch.float32,
        **more,
    )  # fmt: skip


def test_parts_that_do_not_fit():
    of()
    for entries in (torch.zeros(1, 4, 2, dtype=torch.float64), torch.zeros(4, 2)):
        with pytest.raises(UsageError, match="entries must be"):
            of(entries)
    with pytest.raises(UsageError, match="do not fit 1 x 1 groups"):
        of((2, 4, 2))
    with pytest.raises(UsageError, match="codes of 2 bits take"):
        of(codes=(3, 3))
    with pytest.raises(UsageError, match="int8 entries"):
        of(entry_scale=torch.ones(1))
    with pytest.raises(UsageError, match="int8 entries"):
        of(torch.zeros(1, 4, 2, dtype=torch.int8))
    with pytest.raises(UsageError, match="scales"):
        of(scale=Dense(torch.ones(3, 3)), scale_block=2)
    with pytest.raises(UsageError, match="scale_block"):
        of(scale=Dense(torch.ones(3, 4)))
    with pytest.raises(UsageError, match="code 4 of a codebook of 4"):
        Codebook.from_codes(
            torch.full((3, 2), 4), torch.zeros(1, 4, 2), shape=torch.Size((3, 4)),
            dtype=torch.float32,
        )  # fmt: skip
