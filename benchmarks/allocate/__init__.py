"""Proofs of how budgets are spread and searched over."""
