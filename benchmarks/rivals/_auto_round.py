"""AutoRound with its own defaults (200 steps of signed gradient descent a block); see `_common`."""

import time
from pathlib import Path

from _common import run, save_dense
from torch import Tensor


def quantize(model: str, ids: Tensor, bits: int, group: int, out: Path) -> float:
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    start = time.perf_counter()
    rounding = AutoRound(
        network, AutoTokenizer.from_pretrained(model), scheme="W4A16", bits=bits, group_size=group,
        sym=True, dataset=[row[None] for row in ids], nsamples=len(ids), seqlen=ids.shape[1],
        device_map="cpu",
    )  # fmt: skip
    quantized, _ = rounding.quantize()
    seconds = time.perf_counter() - start
    save_dense(quantized.state_dict(), model, out)
    rounding.save_quantized(str(out / "packed"), format="auto_round")
    return seconds


if __name__ == "__main__":
    run(quantize)
