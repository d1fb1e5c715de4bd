"""Proofs of laconic.coding."""
