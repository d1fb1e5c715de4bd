import pytest
import torch

from laconic.numerics.precision import exact_products


@pytest.mark.parametrize("before", [True, False])
def test_what_was_set_comes_back(monkeypatch, before):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    with pytest.raises(ZeroDivisionError), exact_products():
        assert not torch.backends.cudnn.allow_tf32
        raise ZeroDivisionError
    assert torch.backends.cudnn.allow_tf32 is before
