"""Proofs of `laconic.evaluate`."""
