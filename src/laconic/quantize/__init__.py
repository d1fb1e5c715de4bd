"""Methods that put weights (and activations) on fewer levels."""
