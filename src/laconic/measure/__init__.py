"""What it cost: bytes of the real files, quality on real data, time and memory. See docs/measure.md."""
