"""Learned entropy models."""
