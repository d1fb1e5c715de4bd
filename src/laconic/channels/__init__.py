"""Which channels of a model belong together, what they cost, and how to change them."""
