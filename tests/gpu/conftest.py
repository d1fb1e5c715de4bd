"""The same inputs on a CUDA device and on the CPU.

`LACONIC_TEST_DEVICE=cpu` runs these tests where there is none, to see that they are right themselves.
"""

import os

import pytest
import torch

DEVICE = os.environ.get("LACONIC_TEST_DEVICE", "cuda")


@pytest.fixture(scope="session")
def device():
    """Where the tests of this folder compute."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device; LACONIC_TEST_DEVICE=cpu checks the tests themselves")
    return DEVICE


@pytest.fixture(autouse=True)
def _exact_products(device):
    """Convolutions in fp32 as well: by default they are rounded to TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
