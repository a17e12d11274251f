"""Search for the attention heads whose perturbation guides best (HeadHunter, arXiv 2506.10978)."""
