"""Where a model comes from and what it is made of: sources, blocks, layers; and where results go."""
