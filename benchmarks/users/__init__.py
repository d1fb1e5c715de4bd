"""What people who install laconic do with it."""
