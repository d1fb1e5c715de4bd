"""The mathematics that more than one method needs. Tensors in, tensors out; no model, no config."""
