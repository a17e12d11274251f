"""One self-contained page: figures, a plot, and clips side by side."""

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

INK = "#010203"  # of lines and letters in a plot, which take the page's own colour


@dataclass(frozen=True)
class Panel:
    """One video of a player."""

    label: str
    path: Path

    @property
    def video(self) -> str:
        return self.path.stem


@dataclass(frozen=True)
class Player:
    """Videos of the same length, shown together."""

    title: str
    text: str
    panels: Sequence[Panel]
    frames: int
    fps: int


@dataclass(frozen=True)
class TableRow:
    """A row of figures as text."""

    name: str
    cells: Sequence[str]
    front: bool = False


@dataclass(frozen=True)
class HeatMap:
    """Values in [0, 1] or None, by row and column."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float | None]]]


@dataclass(frozen=True)
class Page:
    """What the page says; texts are escaped.

    Attributes:
        what: what a row of the table is.
        heading, explanation: of the table.
        plot: drawn with `INK`.
        facts: settings and versions.
    """

    title: str
    subtitle: str
    what: str
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
        """The whole page; nothing is loaded from elsewhere."""
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
            style=_own("style.css"),
            script=_own("players.js"),
            videos=Markup(json.dumps(videos)),
        )


def svg(figure: Figure) -> Markup:
    """A plot whose lines and letters take the page's colour, on a transparent ground."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dit_accel"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :].replace(INK, "currentColor"))


def _own(name: str) -> Markup:
    return Markup(files(__name__).joinpath(name).read_text())
