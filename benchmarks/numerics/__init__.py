"""Proofs of laconic.numerics."""
