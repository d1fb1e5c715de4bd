"""Proofs of laconic.quantize."""
