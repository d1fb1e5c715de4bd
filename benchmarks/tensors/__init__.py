"""Proofs of laconic.tensors."""
