"""Proofs of `laconic.measure`."""
