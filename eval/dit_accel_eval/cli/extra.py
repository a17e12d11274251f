"""Packages of the extra ``eval`` that several commands need."""

# Metrics, and the page with its plot and its videos.
PAGE = (
    *("imageio", "imageio_ffmpeg", "jinja2", "lpips", "matplotlib"),
    *("scipy", "sklearn", "torchmetrics"),
)
