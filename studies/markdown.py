"""Write tables and intervals as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Row = Mapping[str, Any]


def table(heading: str, rows: Iterator[tuple[Any, ...]]) -> Iterator[str]:
    """Yield the lines of a Markdown table.

    Args:
        heading: Names of the columns, separated by "|".
        rows: Cells of each row.
    """
    yield f"| {heading} |"
    yield f"|{'---|' * (heading.count('|') + 1)}"
    for cells in rows:
        yield f"| {' | '.join(map(str, cells))} |"


def mean(interval: Row, digits: int = 1) -> str:
    """Return a mean and the half width of its interval as text, or "-" if nothing was measured."""
    if interval["mean"] is None:
        return "-"
    return f"{interval['mean']:.{digits}f} +- {interval['half_width']:.{digits}f}"


def median(interval: Row) -> str:
    """Return a median and the ends of its interval as text. Fewer than six values have no interval."""
    if interval.get("low") is None:
        return f"{interval['median']:.2f}"
    return "{median:.2f} ({low:.2f} to {high:.2f})".format(**interval)
