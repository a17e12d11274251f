"""Format tables as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate


def format_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return named rows of values as text with aligned columns; None shows as a dash.

    Args:
        rows: row name to values by column; all rows have the columns of the first one.
    """
    columns = list(next(iter(rows.values())))
    cells = [[name, *(_format_value(row[c]) for c in columns)] for name, row in rows.items()]
    return tabulate(cells, ["", *columns], tablefmt="plain", disable_numparse=True)


def _format_value(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
