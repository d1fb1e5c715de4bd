"""Two kinds of text to adapt a language model to: film reviews (SST-2) and news (RTE)."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path


def task_texts(data: Path) -> dict[str, tuple[str, str, str]]:
    """By task, text to train on, to choose by, and to report."""
    reviews = list(_reviews(data / "sst2/train.tsv"))
    news = [p for n in (1, 2, 3) for p in _news(data / f"rte/rte{n}_dev.xml")]
    return {
        "reviews": _split(reviews, list(_reviews(data / "sst2/dev.tsv"))),
        "news": _split(news, [p for n in (1, 2, 3) for p in _news(data / f"rte/rte{n}_test.xml")]),
    }  # fmt: skip


def _split(training: list[str], unseen: list[str]) -> tuple[str, str, str]:
    held = len(training) // 10
    parts = (training[held:], training[:held], unseen)
    return tuple("\n".join(part) for part in parts)  # type: ignore[return-value]


def _reviews(path: Path) -> Iterator[str]:
    lines = path.read_text().splitlines()[1:]
    return (line.split("\t")[0].strip() for line in lines)


def _news(path: Path) -> Iterator[str]:
    return (pair.findtext("t", "").strip() for pair in ET.parse(path).getroot())
