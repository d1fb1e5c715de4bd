"""GPTQ, AWQ, SmoothQuant, Hadamard and HQQ beside plain rounding: what later methods are measured on.

Every language model is calibrated on the first 128 windows of text/train.txt and measured on
text/valid.txt, classifiers on their own training and test data. `A < B` holds where the 95 % interval
of the paired difference of their losses is below 0.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import Bench
from benchmarks.paired import COMPARED, compare
from laconic.method import LayerMethod
from laconic.models.layout import find_blocks
from laconic.quantize.activations import Activations
from laconic.quantize.awq import AWQ
from laconic.quantize.gptq import GPTQ
from laconic.quantize.hadamard import Hadamard
from laconic.quantize.hqq import HQQ
from laconic.quantize.rtn import RTN
from laconic.quantize.smoothquant import SmoothQuant

Chain = list[LayerMethod]
OUTLIERS, FACTOR = 6, 16  # channels behind each norm, and what they are multiplied by
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
#: In a block, the norms and the layers that each of them feeds.
NORMS = {
    "llama": {
        "input_layernorm": _QKV,
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    },
    "opt": {"self_attn_layer_norm": _QKV, "final_layer_norm": ("fc1",)},
    "gpt2": {"ln_1": ("attn.c_attn",), "ln_2": ("mlp.c_fc",)},
}


def _grid(kind: type[Any], bits: int, **settings: Any) -> Chain:
    return [kind(bits=bits, **settings)]


#: By what a chain is called in the tables. Groups of 64 unless the name says otherwise.
WEIGHTS: dict[str, Chain] = {
    **{f"rtn{b} {r}": _grid(RTN, b, range=r) for b in (4, 3, 2) for r in ("minmax", "mse")},
    **{f"gptq{b} {r}": _grid(GPTQ, b, range=r) for b in (4, 3, 2) for r in ("minmax", "mse")},
    **{f"awq{b} minmax": _grid(AWQ, b, range="minmax") for b in (4, 3, 2)},
    **{f"awq{b} output": _grid(AWQ, b) for b in (4, 3, 2)},
    **{
        f"rtn{b} {r} asymmetric": _grid(RTN, b, range=r, symmetric=False)
        for b in (4, 3, 2)
        for r in ("minmax", "mse")
    },
    **{f"hqq{b}": _grid(HQQ, b) for b in (4, 3, 2)},
    **{f"hqq{b} integer zero": _grid(HQQ, b, zero="integer") for b in (4, 3, 2)},
}
FOUR: dict[str, Chain] = {
    "w4a4 rtn row": [RTN(4, "row"), Activations(4)],
    "w4a4 hadamard rtn row": [Hadamard(), RTN(4, "row"), Activations(4)],
    "w4a4 gptq row": [GPTQ(4, "row"), Activations(4)],
    "w4a4 hadamard gptq row": [Hadamard(), GPTQ(4, "row"), Activations(4)],
}
EIGHT: dict[str, Chain] = {
    "w8a8 rtn row": [RTN(8, "row", range="minmax"), Activations(8)],
    "w8a8 smoothquant": [SmoothQuant()],
    "w8a8 rtn row static": [RTN(8, "row", range="minmax"), Activations(8, range="static")],
    "w8a8 smoothquant static": [SmoothQuant(inputs="static")],
}
#: Which is to lose less than which.
WEIGHT_CLAIMS = (
    *((f"gptq{b} {r}", f"rtn{b} {r}") for b in (4, 3, 2) for r in ("minmax", "mse")),
    *((f"awq{b} minmax", f"rtn{b} minmax") for b in (4, 3)),
    *((f"awq{b} output", f"rtn{b} mse") for b in (4, 3)),
    *((f"hqq{b}", f"rtn{b} minmax asymmetric") for b in (4, 3, 2)),
)
FOUR_CLAIMS = tuple(
    (f"w4a4 hadamard {weights}", f"w4a4 {weights}") for weights in ("rtn row", "gptq row")
)
EIGHT_CLAIMS = (
    ("w8a8 smoothquant", "w8a8 rtn row"),
    ("w8a8 smoothquant static", "w8a8 rtn row static"),
)
PLANTED = {label: chain for label, chain in (EIGHT | FOUR).items() if "gptq" not in label}
PLANTED_CLAIMS = (*EIGHT_CLAIMS, FOUR_CLAIMS[0])


def prove(bench: Bench) -> None:
    language = bench.language_models()
    classifiers = {n: m for n, m in bench.models().items() if n.startswith(("bert", "vit"))}
    rows: list[list[Any]] = []
    for name, model in language.items():
        chains = WEIGHTS | FOUR | EIGHT
        rows += compare(bench, name, model, chains, WEIGHT_CLAIMS + FOUR_CLAIMS + EIGHT_CLAIMS)
    for name, model in classifiers.items():
        rows += compare(bench, name, model, FOUR | EIGHT, FOUR_CLAIMS + EIGHT_CLAIMS)
    for name, model in language.items():
        if _kind(model) in NORMS:
            rows += compare(
                bench, f"{name} with outliers", model, PLANTED, PLANTED_CLAIMS, change=_plant
            )  # fmt: skip
    bench.table(
        "weights in groups of 64 unless they are per row; quality is perplexity, or accuracy of the "
        "classifiers; excess loss against the dense model; layer error on held-out inputs of the calibration data (of the weights where none was used)",
        COMPARED, rows,
    )  # fmt: skip
    bench.note(
        f"with outliers: behind every norm {OUTLIERS} channels are multiplied by {FACTOR} and the weights "
        "that read them divided by it, which changes no output; models of this size have none"
    )
    bench.note(
        "awq and smoothquant keep 16 bits a channel for each layer, hqq 16 bits a group and, in memory, "
        "16 bits for each pair of group and column: the bits say so"
    )
    if "moe-tiny" in language:
        bench.note("moe-tiny: fused experts (most weights) are neither rotated nor smoothed")


def _plant(model: str, out: Path) -> Path:
    """The same function with outliers behind its norms, written to `out`; powers of two are exact."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model)
    for path in find_blocks(loaded):
        block = loaded.get_submodule(path)
        for name, layers in NORMS[_kind(model)].items():
            norm = block.get_submodule(name)
            width = norm.weight.numel()
            channels = torch.arange(OUTLIERS) * width // OUTLIERS
            for parameter in norm.parameters():
                parameter.data[channels] *= FACTOR
            for layer in layers:
                weight = block.get_submodule(layer).weight.data
                inputs_first = type(block.get_submodule(layer)).__name__ == "Conv1D"
                (weight if inputs_first else weight.T)[channels] /= FACTOR
    loaded.save_pretrained(out)
    for file in Path(model).glob("*token*"):
        shutil.copy(file, out)
    return out


def _kind(model: str) -> str:
    config = Path(model) / "config.json"
    return str(json.loads(config.read_text()).get("model_type")) if config.is_file() else ""
