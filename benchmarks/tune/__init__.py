"""Proofs of what several methods train."""
