"""laconic: the same with fewer bits.

    import laconic
    from laconic.quantize.rtn import RTN

    laconic.compress("my-model", RTN(bits=4), out="my-model-4bit")
    model = laconic.load("my-model-4bit")
    laconic.evaluate.compare("my-model", "my-model-4bit", "valid.txt")

Importing this loads neither torch nor transformers; they come with the first function used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laconic import evaluate
    from laconic.compression import Compression, compress
    from laconic.loading import load
    from laconic.report.compression import CompressionReport

__version__ = "0.1.0"
__all__ = ["Compression", "CompressionReport", "compress", "evaluate", "load"]

_HOMES = {
    "Compression": "laconic.compression",
    "CompressionReport": "laconic.report.compression",
    "compress": "laconic.compression",
    "load": "laconic.loading",
}


def __getattr__(name: str) -> Any:
    """Loads the public functions, and the package `laconic.evaluate`, on first use."""
    import importlib

    if name == "evaluate":
        return importlib.import_module("laconic.evaluate")
    if name not in _HOMES:
        raise AttributeError(f"module 'laconic' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
