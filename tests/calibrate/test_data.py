import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from laconic.calibrate import data
from laconic.errors import DataError


class Words:
    """A tokenizer that gives each word a number."""

    def __call__(self, text, **options):
        if isinstance(text, str):
            return {"input_ids": [len(word) for word in text.split()]}
        rows = [[len(word) for word in line.split()] for line in text]
        width = max(map(len, rows))
        ids = [row + [0] * (width - len(row)) for row in rows]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(ids).ne(0).long()}


def test_windows_drop_the_tail_and_cap_the_context():
    text = "word " * 5000
    assert data.windows(text, Words(), 256).shape == (19, 256)
    assert data.windows(text, Words(), 100_000).shape == (2, 2048)


class Counting(Words):
    """Words, and how much text it was given."""

    def __init__(self):
        self.given = []

    def __call__(self, text, **options):
        self.given.append(len(text))
        return super().__call__(text, **options)


@pytest.mark.parametrize("line", ["a few words of text\n", "a few words of text "])
def test_no_more_text_is_read_than_windows_need(line):
    text, tokenizer = line * 3000, Counting()
    found = data.windows(text, tokenizer, 16, limit=3)
    assert torch.equal(found, data.windows(text, Words(), 16)[:3])
    assert max(tokenizer.given) < len(text) / 20


def test_a_limit_beyond_the_text():
    text = "word " * 100
    assert data.windows(text, Words(), 16, limit=50).shape == (6, 16)
    rare = "a" * 3000 + " b" * 40  # far fewer tokens than characters: more is read until it does
    assert data.windows(rare, Words(), 16, limit=2).shape == (2, 16)


def test_too_short_text_says_how_much_is_needed():
    with pytest.raises(DataError, match="3 tokens, one window of this model needs 8"):
        data.windows("a b c", Words(), 8)


def test_text_of_a_folder_is_joined_in_order(tmp_path: Path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first ")
    assert data.read_text(tmp_path) == "first second"


@pytest.mark.parametrize(
    ("content", "problem"), [(b"", "no text"), (b" \n", "no text"), (b"\xff\xfe\x00", "not UTF-8")]
)
def test_bad_text_is_named(tmp_path: Path, content: bytes, problem: str):
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(DataError, match=problem):
        data.read_text(file)


def test_missing_text(tmp_path: Path):
    with pytest.raises(DataError, match="no such file"):
        data.read_text(tmp_path / "none.txt")


def test_sentences_with_and_without_a_heading(tmp_path: Path):
    file = tmp_path / "set.tsv"
    file.write_text('sentence\tlabel\na "quoted film\t1\nbad\t0\n')
    found = data.read_sentences(file, Words())
    assert found.labels.tolist() == [1, 0]
    assert found.inputs["input_ids"].tolist() == [[1, 7, 4], [3, 0, 0]]
    file.write_text("good\t1\n")
    assert len(data.read_sentences(file, Words())) == 1


@pytest.mark.parametrize("content", ["", "no label\n", "a\tb\tc\n", "text\tx\nmore\ty\n"])
def test_rows_of_another_form_are_refused(tmp_path: Path, content: str):
    file = tmp_path / "set.tsv"
    file.write_text(content)
    with pytest.raises(DataError):
        data.read_sentences(file, Words())


def _picture(colour: tuple[int, int, int], size: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(stream, "PNG")
    return stream.getvalue()


def test_images_of_a_folder_and_a_tar_are_the_same(tmp_path: Path):
    archive = tmp_path / "set.tar"
    with tarfile.open(archive, "w") as tar:
        for name, colour in (
            ("dog/1.png", (255, 0, 0)),
            ("cat/1.png", (0, 255, 0)),
            ("cat/2.png", (0, 0, 255)),
        ):
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).write_bytes(_picture(colour))
            info = tarfile.TarInfo(name)
            info.size = len(_picture(colour))
            tar.addfile(info, io.BytesIO(_picture(colour)))
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    from_folder = data.read_images(tmp_path / "set", 8, mean, std)
    from_tar = data.read_images(archive, 8, mean, std)
    assert from_folder.labels.tolist() == [0, 0, 1]
    assert from_tar.labels.tolist() == [1, 0, 0]
    assert torch.equal(from_tar.inputs["pixel_values"][0], from_folder.inputs["pixel_values"][2])
    assert from_tar.inputs["pixel_values"][0, :, 0, 0].tolist() == [1.0, -1.0, -1.0]
    assert data.read_images(archive, 16, mean, std, limit=2).inputs["pixel_values"].shape == (
        2,
        3,
        16,
        16,
    )


def test_no_or_broken_images(tmp_path: Path):
    with pytest.raises(DataError, match="class/name"):
        data.read_images(tmp_path, 8, (0, 0, 0), (1, 1, 1))
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="cat/x.png"):
        data.read_images(tmp_path, 8, (0, 0, 0), (1, 1, 1))


def test_image_statistics(tmp_path: Path):
    assert data.image_statistics(None, 32) == (data.CIFAR_MEAN, data.CIFAR_STD)
    assert data.image_statistics(tmp_path, 224) == (data.IMAGENET_MEAN, data.IMAGENET_STD)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [1, 2, 3], "image_std": [4, 5, 6]})
    )
    assert data.image_statistics(tmp_path, 32) == ((1, 2, 3), (4, 5, 6))


def test_labelled_batches_cover_everything():
    labelled = data.Labelled({"x": torch.arange(10)}, torch.arange(10))
    assert [len(part) for part in labelled.batches(4)] == [4, 4, 2]
    assert labelled.first(3).inputs["x"].tolist() == [0, 1, 2]
