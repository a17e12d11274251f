"""A self-contained HTML page: figures, a plot, and clips side by side."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dit_accel.io.atomic import atomic_write
from dit_accel_eval.plots import INK, save_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """One video of a player."""

    label: str
    path: Path

    @property
    def video(self) -> str:
        """Name of the video in the page."""
        return self.path.stem

    @property
    def is_missing(self) -> bool:
        """True if there is no file. The page says so."""
        return not self.path.is_file()


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
        environment.filters["breakable"] = breakable
        panels = [panel for player in self.players for panel in player.panels]
        videos = {
            panel.video: base64.b64encode(panel.path.read_bytes()).decode()
            for panel in panels
            if not panel.is_missing
        }
        return environment.get_template("report.html.jinja").render(
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            has_front=any(row.front for row in self.table),
            pareto=svg(self.plot) if self.plot else None,
            style=_read_part("style.css"),
            script=_read_part("players.js"),
            videos=Markup(json.dumps(videos)),
        )

    def write(self, path: Path) -> None:
        """Write the page to a file. Characters that UTF-8 does not have become references."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8", errors="xmlcharrefreplace")


def breakable(text: str) -> Markup:
    """Return an escaped text that may be broken after the marks in names of settings and layers."""
    return Markup("<wbr>").join(re.split(r"(?<=[:,/])|(?<=\.)(?!\d)", text))


def svg(figure: Figure) -> Markup:
    """Return a plot as SVG on a transparent background, with axes and letters in the page's text colour."""
    text = save_svg(figure)
    return Markup(text[text.index("<svg") :].replace(INK, "currentColor"))


def _read_part(name: str) -> Markup:
    return Markup(files(__name__).joinpath(name).read_text())
