"""llm-compressor's GPTQ; see `_common`."""

import time
from pathlib import Path

from _common import run, save_dense
from torch import Tensor


def quantize(model: str, ids: Tensor, bits: int, group: int, out: Path) -> float:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from transformers import AutoModelForCausalLM

    data = Dataset.from_list(
        [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in ids]
    )
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": group,
    }
    recipe = GPTQModifier(
        config_groups={"all": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"]
    )
    network = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    start = time.perf_counter()
    oneshot(
        model=network, dataset=data, recipe=recipe, max_seq_length=ids.shape[1],
        num_calibration_samples=len(ids), shuffle_calibration_samples=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    save_dense(network.state_dict(), model, out)
    network.save_pretrained(out / "packed", save_compressed=True)
    return seconds


if __name__ == "__main__":
    run(quantize)
