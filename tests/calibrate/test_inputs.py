import io
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import laconic.zoo
from laconic.calibrate.data import CIFAR_MEAN, CIFAR_STD, Labelled
from laconic.calibrate.inputs import DEFAULT_CONTEXT, Subject, read_inputs
from laconic.errors import DataError, UsageError
from tests.models.tiny import TINY

TOKENIZER = Path(laconic.zoo.__file__).parent / "llama-2m"


@pytest.fixture
def folder(tmp_path):
    """A model's folder with nothing in it but a tokenizer."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, tmp_path)
    return tmp_path


@pytest.fixture
def images(tmp_path):
    for name in ("dog/1.png", "cat/1.png", "cat/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        stream = io.BytesIO()
        Image.new("RGB", (20, 20), (255, 0, 0)).save(stream, "PNG")
        (tmp_path / name).write_bytes(stream.getvalue())
    return tmp_path


@pytest.mark.parametrize(
    ("name", "takes", "context"),
    [
        ("llama", "text", 64),
        ("gpt2", "text", 64),
        ("bert", "sentences", 512),
        ("vit", "images", 2048),
    ],
)
def test_what_models_take(name, takes, context):
    subject = Subject(TINY[name].model(), None)
    assert (subject.takes, subject.context) == (takes, context)
    assert subject.image_size == (16 if name == "vit" else 32)


def test_a_plain_module_takes_images():
    subject = Subject(nn.Linear(2, 2), None)
    assert (subject.takes, subject.config, subject.image_size) == ("images", None, 32)
    assert (subject.context, subject.image_argument) == (DEFAULT_CONTEXT, "pixel_values")


def test_what_is_in_memory_is_taken_as_it_is():
    subject, windows = Subject(nn.Linear(2, 2), None), torch.arange(6).view(2, 3)
    assert read_inputs(windows, subject) is windows
    labelled = Labelled({}, torch.arange(2))
    assert read_inputs(labelled, subject) is labelled


def test_no_such_file(tmp_path):
    with pytest.raises(DataError, match="none.txt: no such file or folder"):
        read_inputs(tmp_path / "none.txt", Subject(nn.Linear(2, 2), None))


@pytest.mark.parametrize("limit", [None, 2])
def test_text_becomes_windows(folder, limit):
    file = folder / "text.txt"
    file.write_text("The river ran on past the old mill.\n" * 60)
    subject = Subject(TINY["llama"].model(), folder)
    found = read_inputs(str(file), subject, limit)
    tokens = subject.tokenizer()(file.read_text(), add_special_tokens=False)["input_ids"]
    count = len(tokens) // 64 if limit is None else limit
    assert found.shape == (count, 64) and count >= 2
    assert found.flatten().tolist() == tokens[: 64 * count]


def test_sentences_are_as_long_as_the_model_allows(folder):
    file = folder / "set.tsv"
    file.write_text("good\t1\n" + "on and on " * 50 + "\t0\n")
    subject = Subject(TINY["bert"].model(), folder)
    subject.model.config.max_position_embeddings = 20
    tokenizer = subject.tokenizer()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Subject, "tokenizer", lambda _: tokenizer)
        found = read_inputs(file, subject)
    assert found.labels.tolist() == [1, 0]
    assert found.inputs["attention_mask"].sum(dim=1)[1] == found.inputs["input_ids"].shape[1] == 20


@pytest.mark.parametrize("limit", [None, 2])
def test_images_are_scaled_for_the_model(images, limit):
    found = read_inputs(images, Subject(TINY["vit"].model(), None), limit)
    assert found.inputs["pixel_values"].shape == (limit or 3, 3, 16, 16)
    assert found.labels.tolist() == [0, 0, 1][:limit]


def test_a_plain_module_is_given_what_cifar_is(images):
    pixels = read_inputs(images, Subject(nn.Linear(2, 2), images)).inputs["pixel_values"]
    assert pixels.shape == (3, 3, 32, 32)
    red = [(one - m) / s for one, m, s in zip((1, 0, 0), CIFAR_MEAN, CIFAR_STD)]
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor(red))


def test_no_tokenizer(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("words")
    with pytest.raises(UsageError, match=r"no tokenizer: give windows \(N, T\)"):
        read_inputs(file, Subject(TINY["llama"].model(), None))
    TINY["llama"].model().config.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="no tokenizer to read text with: .") as found:
        read_inputs(file, Subject(TINY["llama"].model(), tmp_path))
    assert "\n" not in str(found.value)
