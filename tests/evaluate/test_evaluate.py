import math

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

import laconic
from laconic.calibrate.data import Labelled
from laconic.errors import DataError, UsageError
from laconic.evaluate import compare, evaluate, run
from laconic.quantize.rtn import RTN
from laconic.zoo import REFERENCE, TEST_TEXT
from laconic.zoo.resnet import resnet20
from tests.models.tiny import TINY


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "t.txt"
    file.write_text(TEST_TEXT.read_text()[:12_000])
    return file


def test_bundled_model_has_learnt(text):
    report = evaluate(REFERENCE, text)
    assert 20 < report.perplexity < 80 and report.task == "language" and report.against is None
    assert report.stored_bytes == (REFERENCE / "model.safetensors").stat().st_size


@pytest.mark.parametrize("batch", [1, 32])
def test_batch_does_not_matter(text, batch):
    assert evaluate(REFERENCE, text, batch=batch).perplexity == evaluate(REFERENCE, text).perplexity


def test_identical_models_do_not_differ(text):
    against = compare(REFERENCE, REFERENCE, text).against
    assert against["flips"] == 0 and against["kl_per_token"] == 0 and against["verdict"] == "tie"


def test_fewer_bits_cost_more(text, tmp_path):
    excess = []
    for bits in (8, 4, 2):
        laconic.compress(REFERENCE, RTN(bits=bits), out=tmp_path / str(bits))
        against = compare(REFERENCE, tmp_path / str(bits), text).against
        excess.append(against["excess_log_perplexity"])
    assert excess[0] < excess[1] < excess[2] and against["verdict"] == "worse"


def test_excess_is_the_difference_of_the_log_perplexities(text, tmp_path):
    laconic.compress(REFERENCE, RTN(bits=3), out=tmp_path / "o")
    dense, small = evaluate(REFERENCE, text), compare(REFERENCE, tmp_path / "o", text)
    expected = math.log(small.perplexity) - math.log(dense.perplexity)
    assert small.against["excess_log_perplexity"] == pytest.approx(expected, abs=1e-9)


def test_modules_and_tensors_in_memory():
    windows = torch.randint(2048, (3, 64))
    model = laconic.load(REFERENCE)
    report = evaluate(model, windows, against=laconic.load(REFERENCE))
    assert report.tokens == 3 * 63 and report.against["flips"] == 0 and report.stored_bytes is None


def test_classifier_in_memory():
    data = Labelled({"x": torch.randn(6, 3, 32, 32)}, torch.randint(10, (6,)))
    report = evaluate(resnet20().eval(), data)
    assert report.perplexity is None and report.task == "classification" and report.tokens == 6


def test_wrong_use(text, tmp_path):
    with pytest.raises(UsageError, match="batch"):
        evaluate(REFERENCE, text, batch=0)
    with pytest.raises(UsageError, match="tokenizer"):
        evaluate(laconic.load(REFERENCE), text)
    with pytest.raises(DataError, match="no such file"):
        evaluate(REFERENCE, tmp_path / "none")
    with pytest.raises(UsageError, match="quick or full"):
        evaluate(REFERENCE, text, slice="half")


def test_quick_is_the_beginning(text, monkeypatch):
    monkeypatch.setattr(run, "QUICK", {"text": 2, "labelled": 3})
    quick, full = evaluate(REFERENCE, text, slice="quick"), evaluate(REFERENCE, text)
    length = laconic.load(REFERENCE).config.max_position_embeddings
    assert quick.tokens == 2 * (length - 1) < full.tokens and quick.slice == "quick"
    model = laconic.load(REFERENCE)
    windows = torch.randint(2048, (3, 8))
    assert evaluate(model, windows, slice="quick").tokens == 2 * 7
    data = Labelled({"x": torch.randn(6, 3, 32, 32)}, torch.randint(10, (6,)))
    assert evaluate(resnet20().eval(), data, slice="quick").tokens == 3


def test_sentences_and_images_from_files(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "QUICK", {"text": 2, "labelled": 3})
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.save_pretrained(tmp_path / "bert")
    model = TINY["bert"].model()
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "bert")
    (tmp_path / "s.tsv").write_text("a good play\t1\nthe king is dead\t0\n" * 3)
    for slice, examples in (("quick", 3), ("full", 6)):
        report = evaluate(tmp_path / "bert", tmp_path / "s.tsv", slice=slice)
        assert (report.task, report.tokens) == ("classification", examples)
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        (tmp_path / "i" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), "red").save(tmp_path / "i" / name)
    resnet = "laconic.zoo.resnet:resnet20"
    assert evaluate(resnet, tmp_path / "i").tokens == 4
    assert evaluate(resnet, tmp_path / "i", slice="quick").stored_bytes is None


def test_a_model_in_half_precision_is_measured_in_full():
    half = laconic.load(REFERENCE, dtype=torch.bfloat16)
    stored = sum(p.nbytes for p in half.parameters())
    report = evaluate(half, torch.randint(2048, (1, 8)))
    assert stored <= report.resident_bytes < 1.1 * stored
    assert next(half.parameters()).dtype == torch.float32
