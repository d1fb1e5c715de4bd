"""Train the bundled reference model `laconic/zoo/llama-2m` from public-domain text.

Reads `speeches.txt` and `shakespeare.txt` from the folder given (US presidential speeches and
Shakespeare's plays, both public domain), holds back the last tenth of each for testing, trains a
byte-level BPE tokenizer and a small Llama, and writes the model, its tokenizer, the two text
excerpts that the package bundles and TRAINING.json with the provenance.

    python scripts/train_zoo_llama.py ../shared/data/text/domains src/laconic/zoo/llama-2m
"""

import argparse
import hashlib
import json
import math
import time
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DOMAINS = ("speeches", "shakespeare")
CONTEXT = 256
VOCABULARY = 2048
BATCH = 16
CALIBRATION_BYTES = 200_000  # bundled beside the model, half from each domain


def read_split(folder: Path) -> tuple[str, str, str, dict[str, str]]:
    """Returns (train, calibration, test, sha256 of each source); test is each domain's last tenth."""
    train, calibration, test, digests = [], [], [], {}
    for domain in DOMAINS:
        raw = (folder / f"{domain}.txt").read_bytes()
        digests[domain] = hashlib.sha256(raw).hexdigest()
        text = raw.decode("utf-8", errors="ignore")
        cut = text.rindex("\n", 0, int(len(text) * 0.9)) + 1
        train.append(text[:cut])
        test.append(text[cut:])
        calibration.append(text[: CALIBRATION_BYTES // len(DOMAINS)].rsplit("\n", 1)[0] + "\n")
    return "".join(train), "".join(calibration), "".join(test), digests


def train_tokenizer(text: str) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([text], vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine to a twentieth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, tokens: torch.Tensor) -> float:
    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    total = sum(model(w, labels=w).loss.item() * len(w) for w in windows.split(16))
    return math.exp(total / len(windows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--peak", type=float, default=3e-3)
    parser.add_argument("--bf16", action="store_true", help="autocast (CPUs with AVX-512 BF16)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    torch.set_num_threads(2)
    train_text, calibration, test_text, digests = read_split(arguments.text)
    tokenizer = train_tokenizer(train_text)
    train = torch.tensor(tokenizer(train_text)["input_ids"])
    test = torch.tensor(tokenizer(test_text)["input_ids"])
    print(f"{len(train):,} training tokens, {len(test):,} test tokens")

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=160, intermediate_size=432, num_hidden_layers=5,
        num_attention_heads=5, num_key_value_heads=5, head_dim=32, max_position_embeddings=CONTEXT,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=arguments.peak, weight_decay=0.1, betas=(0.9, 0.95)
    )
    started = time.time()
    for step in range(arguments.steps):
        starts = torch.randint(len(train) - CONTEXT, (BATCH,))
        batch = torch.stack([train[s : s + CONTEXT] for s in starts])  # (B, T)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.peak)
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
            loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {time.time() - started:.0f} s", flush=True)

    model.eval()
    model.generation_config.pad_token_id = 0
    record = {
        "source": "US presidential speeches and Shakespeare's plays, public domain; first nine "
        "tenths of each for training, last tenth for test.txt",
        "source_sha256": digests,
        "script": "scripts/train_zoo_llama.py",
        "parameters": model.num_parameters(),
        "steps": arguments.steps,
        "seed": arguments.seed,
        "tokens": arguments.steps * BATCH * CONTEXT,
        "minutes": round((time.time() - started) / 60, 1),
        "test_perplexity_fp32": round(perplexity(model.float(), test), 3),
    }
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    (arguments.out / "calibration.txt").write_text(calibration, encoding="utf-8")
    (arguments.out / "test.txt").write_text(test_text, encoding="utf-8")
    (arguments.out / "TRAINING.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
