"""Files: atomic writes, JSON Lines, media, prompts and text parsing."""
