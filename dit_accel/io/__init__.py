"""Read and write files: atomic writes, JSON Lines, media, prompts, tables and text parsing."""
