"""Seconds and GPU memory at the sizes of a 7B model; `python -m tests.gpu.big`, under two minutes.

One random block of the Llama layout (hidden 4096, MLP 11008): the pass that collects second moments of
64 sequences of 2048 tokens, then single layers through methods.
"""

import time
from types import SimpleNamespace

import torch

from laconic.calibrate.collect import collect
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.live import LiveBlock
from laconic.calibrate.statistics import SecondMoment
from laconic.calibrate.stream import open_stream
from laconic.factorize.svd import SVD
from laconic.models.memory import MemorySource
from laconic.prune.sparsegpt import SparseGPT
from laconic.quantize.ecgptq import ECGPTQ
from laconic.quantize.gptq import GPTQ
from laconic.quantize.hadamard import Hadamard
from laconic.quantize.rtn import RTN
from laconic.tensors import Dense
from laconic.tensors.stored import Record

DEVICE = "cuda"
SEQUENCES, TOKENS, BATCH = 64, 2048, 4
BUDGET = 105.0  # seconds after which nothing new is begun
METHODS = {
    "rtn 4 bits g128": RTN(bits=4, group=128),
    "gptq 4 bits g128": GPTQ(bits=4, group=128),
    "sparsegpt 2:4": SparseGPT(pattern="2:4"),
    "hadamard": Hadamard(),
    "svd keep 0.5": SVD(),
    "ecgptq 2.3 bits": ECGPTQ(bits=2.3),
}
LAYERS = ("self_attn.q_proj", "mlp.gate_proj")  # 4096 x 4096 and 11008 x 4096


def block():
    """A bf16 Llama of one block and a small vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1024, hidden_size=4096, intermediate_size=11008, num_hidden_layers=1,
        num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=TOKENS,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    return model.cpu().eval()


def measured(function, device=DEVICE):
    """(result, seconds, GiB of GPU memory at most)."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    result = function()
    if device == "cuda":
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    return result, time.perf_counter() - started, peak


def row(what, seconds, peak=None, note=""):
    memory = "" if peak is None else f"{peak:8.2f}"
    print(f"{what:34s} {seconds:9.2f} {memory:8s}  {note}", flush=True)


def pass_over(source):
    """Second moments of every layer of the block."""
    draw = torch.Generator().manual_seed(1)
    inputs = [
        {"input_ids": torch.randint(1024, (1, TOKENS), generator=draw)} for _ in range(SEQUENCES)
    ]
    with torch.inference_mode():
        stream = open_stream(source, inputs, device=DEVICE)
        live = LiveBlock(source, source.blocks[0], DEVICE)
        stats = collect(
            live, live.layers, [SecondMoment()], lambda s: stream.run(0, live.module, s),
            range(SEQUENCES), batch=BATCH,
        )  # fmt: skip
        stream.advance(0, live.module)
    return SimpleNamespace(live=live, stats=stats)


def compressed(method, layer, weight, found):
    """What `method` makes of one layer."""
    stats = LayerStats(layer, found)
    with torch.no_grad():
        return method.revise(weight, Record(Dense(weight)), stats)


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device")
    begun = time.perf_counter()
    torch.set_num_threads(min(16, torch.get_num_threads()))
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads"
    )
    print(f"{'':34s} {'seconds':>9s} {'GiB':>8s}")
    source = MemorySource(block())
    torch.linalg.inv(torch.eye(2, device=DEVICE))  # loads the libraries
    found, seconds, peak = measured(lambda: pass_over(source))
    row(f"statistics of {SEQUENCES} x {TOKENS} tokens", seconds, peak)
    given = {}
    for layer in found.live.layers:
        if layer.name.endswith(LAYERS):
            weight = found.live.weight(layer).clone()
            given[layer.name] = layer, weight, dict(found.stats[layer.name].collected)
    del found
    torch.cuda.empty_cache()
    for layer, weight, collected in given.values():
        shape = "x".join(map(str, weight.shape))
        for name, method in METHODS.items():
            if time.perf_counter() - begun > BUDGET:
                print(f"{name}, {shape}: left out, {BUDGET:.0f} s are over")
                continue
            record, seconds, peak = measured(
                lambda m=method, w=weight, la=layer, c=collected: compressed(m, la, w, c)
            )
            dense = record.weight.dense(torch.float32)
            dense = dense if record.transform is None else record.transform.unfold(dense)
            lost = float((dense - weight.float()).norm() / weight.float().norm())
            row(
                f"{name}, {shape}",
                seconds,
                peak,
                f"{record.weight.format}, weights differ by {lost:.3f}",
            )
    layer, weight, collected = next(iter(given.values()))
    if time.perf_counter() - begun < BUDGET:
        here = {
            s: type(c)(s, c.count, {k: t.cpu() for k, t in c.sums.items()})
            for s, c in collected.items()
        }
        cpu = weight.cpu()
        compressed(GPTQ(bits=4, group=128), layer, cpu[:8], here)  # compiles
        _, seconds, _ = measured(
            lambda: compressed(GPTQ(bits=4, group=128), layer, cpu, here), device="cpu"
        )
        row(f"on the CPU: gptq, {'x'.join(map(str, weight.shape))}", seconds)
    row("all", time.perf_counter() - begun)


if __name__ == "__main__":
    main()
