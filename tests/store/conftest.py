import pytest

from laconic.store import ingest, inputs, manifest


@pytest.fixture(params=[manifest.SLAB, 5000, manifest.SMALL], ids=["slab", "5000", "4096"])
def slab(request, monkeypatch):
    """Objects of the usual size, and so small that most tensors have several."""
    for module in (manifest, ingest, inputs):
        monkeypatch.setattr(module, "SLAB", request.param)
    return request.param
