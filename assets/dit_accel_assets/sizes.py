"""Name the sizes of the tiny world."""

SIZES: dict[str, tuple[int, int, int]] = {
    "smoke": (128, 128, 17),
    "study": (192, 192, 33),
    "show": (256, 256, 49),
}
"""Height, width and frames of each size."""
