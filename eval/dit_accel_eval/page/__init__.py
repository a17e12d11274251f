"""A self-contained HTML page: figures, a plot, and clips side by side."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

# Colour of axes and letters in a plot. The page replaces it by its own text colour.
INK = "#010203"


@dataclass(frozen=True)
class Panel:
    """One video of a player."""

    label: str
    path: Path

    @property
    def video(self) -> str:
        """Name of the video in the page."""
        return self.path.stem


@dataclass(frozen=True)
class Player:
    """Videos of equal length that play together."""

    title: str
    text: str
    panels: Sequence[Panel]
    frames: int
    fps: int


@dataclass(frozen=True)
class TableRow:
    """A row of formatted figures. Rows of the front are bold."""

    name: str
    cells: Sequence[str]
    front: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A table of values in [0, 1] or None."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float | None]]]


@dataclass(frozen=True)
class Page:
    """Content of a page. Texts are escaped.

    Attributes:
        row_name: Heading of the first column of the table, which names the rows.
        facts: Settings and versions.
        heading, explanation: Texts above the table.
        plot: Figure drawn in `INK`.
    """

    title: str
    subtitle: str
    row_name: str
    columns: Sequence[str]
    table: Sequence[TableRow]
    facts: Sequence[tuple[str, str]]
    heading: str
    explanation: str
    notes: Sequence[str] = ()
    plot: Figure | None = None
    layers: HeatMap | None = None
    clusters: Sequence[Mapping[str, Any]] = ()
    clips_title: str = "Worst clips"
    players: Sequence[Player] = field(default_factory=tuple)

    def html(self) -> str:
        """Return the page as HTML that loads nothing from elsewhere."""
        environment = Environment(
            loader=PackageLoader(__name__, ""),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
        )
        panels = {panel.video: panel.path for player in self.players for panel in player.panels}
        videos = {name: base64.b64encode(p.read_bytes()).decode() for name, p in panels.items()}
        return environment.get_template("report.html.jinja").render(
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            has_front=any(row.front for row in self.table),
            pareto=svg(self.plot) if self.plot else None,
            style=_read_part("style.css"),
            script=_read_part("players.js"),
            videos=Markup(json.dumps(videos)),
        )


def svg(figure: Figure) -> Markup:
    """Return a plot as SVG on a transparent background, with axes and letters in the page's text colour."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dit_accel"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :].replace(INK, "currentColor"))


def _read_part(name: str) -> Markup:
    return Markup(files(__name__).joinpath(name).read_text())
