"""Proofs of laconic.prune."""
