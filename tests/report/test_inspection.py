import torch

from laconic.compression import compress
from laconic.quantize.activations import Activations
from laconic.quantize.hadamard import Hadamard
from laconic.quantize.rtn import RTN
from laconic.quantize.wush import WUSH
from laconic.report.inspection import inspect_path
from tests.calibrate.test_calibrated import data


def layers(folder):
    rows = inspect_path(folder)["tensors"]
    return [row for row in rows if row["name"].endswith("q_proj.weight")]


def test_transforms_and_inputs_are_named(tiny_models, tmp_path):
    compress(tiny_models["llama"], [Hadamard(), RTN(4, 8), Activations(8)], out=tmp_path / "o")
    assert {row["format"] for row in layers(tmp_path / "o")} == {
        "int4 g8 behind hadamard, int8 inputs"
    }


def test_transforms_are_counted(tiny_models, tmp_path):
    compress(tiny_models["llama"], RTN(4, 8), out=tmp_path / "a")
    chain = [WUSH(8, precision="fp32"), RTN(4, 8)]
    compress(tiny_models["llama"], chain, data("llama"), out=tmp_path / "b")
    plain, moved = layers(tmp_path / "a")[0], layers(tmp_path / "b")[0]
    width = plain["shape"][1]
    assert moved["resident_bytes"] - plain["resident_bytes"] == width * 8 * torch.float32.itemsize
