"""Plots whose labels are plain text, as SVG for a page and as PNG files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dit_accel.errors import DitAccelError, RunFailed, first_line
from dit_accel.io.atomic import atomic_write

matplotlib.use("Agg")

# Colour of axes and letters in a plot. The page replaces it by its own text colour.
INK = "#010203"
INK_PARTS = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
WIDEST_LABEL = 90

Entry = tuple[Any, str]
"""A handle of a legend and its label."""


@contextmanager
def naming_results(place: str) -> Iterator[None]:
    """Turn an error of a plot or a page into one line that says where the figures are.

    Raises:
        RunFailed: for every error.
    """
    try:
        yield
    except DitAccelError as error:
        raise RunFailed(f"{first_line(error)}; {place}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise RunFailed(f"the page cannot be made ({reason}); {place}") from error


@contextmanager
def plain_style(ink: str = "black") -> Iterator[None]:
    """Draw axes and letters in a colour. Dollar signs in labels are no formulas."""
    plain: dict[Any, Any] = {"text.parse_math": False, "text.usetex": False}
    with matplotlib.rc_context(plain | dict.fromkeys(INK_PARTS, ink)):
        yield


def add_legend(owner: Figure | Axes, entries: Sequence[Entry], **options: Any) -> None:
    """Add a legend with labels of any text.

    matplotlib leaves out labels that begin with an underscore, so the legend gets them at last.
    """
    if not entries:
        return
    handles: list[Artist] = [handle for handle, _ in entries]
    legend = owner.legend(handles, ["label"] * len(entries), **options)
    for text, (_, label) in zip(legend.get_texts(), entries, strict=True):
        text.set_text(fill(label, WIDEST_LABEL))


def save_svg(figure: Figure) -> str:
    """Return a plot as SVG on a transparent background. The page's own font draws its letters."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dit_accel"}), quiet():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def save_png(path: Path, figure: Figure, dpi: int = 140) -> None:
    """Write a plot to a PNG file."""
    with atomic_write(path) as temporary, quiet():
        figure.savefig(temporary, dpi=dpi)


@contextmanager
def quiet() -> Iterator[None]:
    """Say nothing of characters that the font does not have, which it draws as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
