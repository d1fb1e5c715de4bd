"""What a model does on data, and the runner that takes a model through a method block by block."""
