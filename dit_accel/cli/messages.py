"""Print the warnings and the progress of a command, and hold back what libraries log."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, TextIO

import click

from dit_accel.core.progress import Part, Progress

Level = Literal["quiet", "normal", "verbose"]

# Seconds after which a part that is usually short is shown.
PATIENCE = 2.0

# Warnings of libraries that say nothing about a render.
NOISE = re.compile(r"CUDA|NVML|[Dd]eprecat|tokenizers|torchao")
HIDDEN = (
    DeprecationWarning,
    PendingDeprecationWarning,
    FutureWarning,
    ImportWarning,
    ResourceWarning,
)


class Messages(AbstractContextManager["Messages"]):
    """Shows the warnings of the block.

    Attributes:
        level: ``quiet`` shows nothing, ``normal`` shows each warning once, ``verbose`` also shows what libraries log.
    """

    def __init__(self) -> None:
        self.level: Level = "normal"
        self._shown: set[str] = set()
        self._caught = warnings.catch_warnings()
        self._disabled = logging.NOTSET

    def __enter__(self) -> Messages:
        self._caught.__enter__()
        warnings.showwarning = self._show
        self._disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)
        return self

    def __exit__(self, *_: object) -> None:
        logging.disable(self._disabled)
        self._caught.__exit__(None, None, None)

    def set_level(self, level: Level) -> None:
        """Change what is shown from now on."""
        self.level = level
        logging.disable(self._disabled if level == "verbose" else logging.WARNING)

    def _show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = " ".join(str(message).split())
        is_ours = "dit_accel" in Path(filename).parts or category.__module__.startswith("dit_accel")
        is_noise = issubclass(category, HIDDEN) or (not is_ours and NOISE.search(text))
        if self.level == "quiet" or text in self._shown or (is_noise and self.level == "normal"):
            return
        self._shown.add(text)
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):  # a bar moves out of the way
            click.echo(f"warning: {text}", err=True)


def tell(text: str) -> None:
    """Print a line on standard error about what the command does now, unless it is quiet."""
    messages = click.get_current_context().find_object(Messages)
    if messages is None or messages.level != "quiet":
        click.echo(text, err=True)


def show_progress() -> Progress:
    """Return what shows the progress of the current command on standard error: nothing if it is quiet."""
    messages = click.get_current_context().find_object(Messages)
    level = "normal" if messages is None else messages.level
    return Progress(None if level == "quiet" else sys.stderr, verbose=level == "verbose")


def show_usually_short(label: str = "starting") -> AbstractContextManager[Part]:
    """Show the block as a part of the current command, if it lasts more than two seconds."""
    return show_progress().part(label, patience=PATIENCE)


def quiet_option(command: Any) -> Any:
    """Add ``--quiet``, whose value ``quiet`` the command also takes."""
    return click.option(
        "--quiet",
        is_flag=True,
        callback=_set_quiet,
        help="Print nothing but errors.",
    )(command)


def verbose_option(command: Any) -> Any:
    """Add ``-v``, which also shows what libraries log."""
    return click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_set_verbose,
        help="Also print what libraries log and warn, and in a pipe every step.",
    )(command)


def _set_quiet(context: click.Context, _: click.Parameter, value: bool) -> bool:
    if value:
        _set_level(context, "quiet")
    return value


def _set_verbose(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        _set_level(context, "verbose")


def _set_level(context: click.Context, level: Level) -> None:
    messages = context.find_object(Messages)
    if messages is None:
        return
    if messages.level != "normal":
        raise click.UsageError("--quiet excludes --verbose: give one of them")
    messages.set_level(level)
