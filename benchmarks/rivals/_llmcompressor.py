"""llm-compressor's GPTQ; runs inside its own environment: python FILE MODEL WINDOWS BITS GROUP OUT."""

import json
import sys
import time
from pathlib import Path

import torch

THREADS, SEQUENCES = 2, 128


def main(model: str, windows: str, bits: int, group: int, out: Path) -> None:
    torch.set_num_threads(THREADS)
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from transformers import AutoModelForCausalLM

    ids = torch.load(windows, weights_only=True)[:SEQUENCES]
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
    save_dense(network, model, out / "dense")
    network.save_pretrained(out / "packed", save_compressed=True)
    report(out, seconds)


def save_dense(network, model: str, out: Path) -> None:
    """The quantized values as an ordinary model, for our own evaluation."""
    import shutil

    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True)
    names = [n for shard in Path(model).glob("*.safetensors") for n in load_file(shard)]
    state = network.state_dict()
    save_file(
        {n: state[n].contiguous() for n in names}, out / "model.safetensors", {"format": "pt"}
    )
    for file in Path(model).glob("*.json"):
        if "index" not in file.name:
            shutil.copyfile(file, out / file.name)


def report(out: Path, seconds: float) -> None:
    """What the run took, as JSON: seconds of the call alone, peak memory of the process."""
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if "VmHWM" in line)
    stored = sum(file.stat().st_size for file in (out / "packed").glob("*.safetensors"))
    (out / "report.json").write_text(
        json.dumps({"seconds": seconds, "peak": peak, "stored": stored})
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
