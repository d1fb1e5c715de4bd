"""Runs as tables, pictures and one self-contained page: bytes of the artefact against quality."""
