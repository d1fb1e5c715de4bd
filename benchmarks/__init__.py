"""Proofs and speed: what laconic claims, measured. `python -m benchmarks --help`."""
