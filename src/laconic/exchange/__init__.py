"""Models that other tools wrote, and models for other tools to read."""

from laconic.exchange.exports import Export, export
from laconic.exchange.imports import Import, import_model

__all__ = ["Export", "Import", "export", "import_model"]
