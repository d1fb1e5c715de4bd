"""Proofs of laconic.factorize."""
