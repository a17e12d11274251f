"""Files are written whole or not at all."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dit_accel.errors import InvalidSettings


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that becomes ``path`` on success and vanishes on failure. Who ends the process
    meanwhile, by Ctrl-C or SIGTERM, waits until the file is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")
    with defer_signals():
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Deliver SIGINT and SIGTERM at the end: an encoder that was just started would write after the clean-up."""
    arrived: list[int] = []
    main = threading.current_thread() is threading.main_thread()  # no other may change handlers
    ends = (signal.SIGINT, signal.SIGTERM) if main else ()
    known = [n for n in ends if signal.getsignal(n) is not None]  # else it could not be put back
    before = {n: signal.signal(n, lambda number, _: arrived.append(number)) for n in known}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in arrived:
            signal.raise_signal(late)


def check_writable(path: Path) -> None:
    """Raise InvalidSettings unless a file can be written at ``path``; makes nothing."""
    if path.is_dir():
        raise InvalidSettings(f"output {path} is a folder: give a file name")
    folder = next(p for p in path.absolute().parents if p.exists())
    if not folder.is_dir():
        raise InvalidSettings(f"output {path}: {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidSettings(f"cannot write into {folder}: choose another output with -o")
    probe = folder / f".dit-accel-{uuid.uuid4().hex[:8]}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise InvalidSettings(
            f"cannot write into {folder}: {error.strerror}; choose another -o"
        ) from None
