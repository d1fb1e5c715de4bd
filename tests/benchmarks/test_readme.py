"""README's examples are found as they stand."""

from benchmarks.bench import ROOT
from benchmarks.users.readme import examples


def test_every_block_is_found():
    found = examples((ROOT / "README.md").read_text())
    shells = [text for language, text in found if language == "sh"]
    assert [text.split()[:2] for text in shells] == [
        ["laconic", "compress"], ["laconic", "compress"], ["laconic", "evaluate"], ["laconic", "report"], ["laconic", "pack"],
    ]  # fmt: skip
    assert [language for language, _ in found if language != "sh"] == ["python", "python"]


def test_other_sections_are_not_examples():
    text = "```\nmake demo\n```\n## Examples\n```\na b\nc\n```\n```python\nx\ny\n```\n## More\n```\nd\n```\n"
    assert examples(text) == [("sh", "a b"), ("sh", "c"), ("python", "x\ny")]
