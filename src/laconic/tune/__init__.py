"""What several methods train."""
