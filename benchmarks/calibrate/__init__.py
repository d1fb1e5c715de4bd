"""Proofs of laconic.calibrate."""
