import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports transformers

import pytest
import torch
from hypothesis import settings

from tests.models.tiny import TINY

settings.register_profile("laconic", deadline=None, derandomize=True)
settings.load_profile("laconic")
torch.set_num_threads(1)  # tensors are tiny, and waiting for a busy core costs more


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a test before may have set another number


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers():
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Directories of the tiny models, by name; tests must not write into them."""
    root = tmp_path_factory.mktemp("tiny")
    for name, tiny in TINY.items():
        tiny.model().save_pretrained(root / name)
    return {name: root / name for name in TINY}
