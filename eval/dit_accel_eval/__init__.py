"""Quality against speed: metrics, paired runs, and their tables."""
