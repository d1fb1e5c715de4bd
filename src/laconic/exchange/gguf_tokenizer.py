"""What llama.cpp must know of a tokenizer."""

import json
from pathlib import Path
from typing import Any

from laconic.errors import CorruptFile

NORMAL, CONTROL, OWN, UNUSED = 1, 3, 4, 5  # llama.cpp's kinds of tokens
LEFT_OUT = (
    "the file has no tokenizer: only byte-level BPE of GPT-2, Llama 3 and Qwen is written; give llama.cpp "
    "token numbers, or make the tokenizer with its own converter"
)


def tokenizer_fields(
    writer: Any, library: Any, folder: Path, config: dict[str, Any]
) -> tuple[str, ...]:
    """Writes the tokenizer in `folder`, if llama.cpp has its kind; otherwise a note says so.

    Raises:
        CorruptFile: tokenizer.json cannot be read.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return (LEFT_OUT,)
    try:
        tokenizer = json.loads(file.read_text())
        model, before = tokenizer["model"], _splitter(tokenizer.get("pre_tokenizer"))
        if model.get("type") != "BPE" or before is None:
            return (LEFT_OUT,)
        tokens, kinds = _tokens(tokenizer, int(config["vocab_size"]))
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFile(f"{file}: cannot be read: {error!r}") from error
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(before)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    for name, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id)):
        number = config.get(f"{name}_token_id")
        if isinstance(number, int):
            add(number)
    writer.add_add_bos_token(_begins(tokenizer))
    return ()


def _tokens(tokenizer: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """The text and kind of every token; numbers that no token has are unused."""
    tokens, kinds = [f"[unused{i}]" for i in range(size)], [UNUSED] * size
    for text, number in tokenizer["model"]["vocab"].items():
        if number < size:
            tokens[number], kinds[number] = text, NORMAL
    for added in tokenizer.get("added_tokens", ()):
        if added["id"] < size:
            tokens[added["id"]] = added["content"]
            kinds[added["id"]] = CONTROL if added.get("special") else OWN
    return tokens, kinds


def _splitter(before: dict[str, Any] | None) -> str | None:
    """llama.cpp's name for how text is split before BPE; None for ways that are not known here."""
    if before is None:
        return None
    if before.get("type") == "ByteLevel" and before.get("use_regex", True):
        return "gpt-2"
    text = json.dumps(before)
    if before.get("type") != "Sequence" or "ByteLevel" not in text:
        return None
    if "{N}{1,3}" in text:
        return "llama-bpe"
    return "qwen2" if "|\\\\p{N}|" in text else None


def _begins(tokenizer: dict[str, Any]) -> bool:
    """Whether texts are begun with the token for beginnings."""
    after = tokenizer.get("post_processor") or {}
    first: dict[str, Any] = next(iter(after.get("single") or ()), {})
    return "SpecialToken" in first
