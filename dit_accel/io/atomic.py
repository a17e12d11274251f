"""Write files atomically: a reader sees the whole file or none."""

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
    """Yield a temporary file name that becomes ``path`` on success and is removed on failure.

    SIGINT and SIGTERM are deferred until the file is complete.

    Example:
        >>> with atomic_write(Path("report.json")) as temporary:
        ...     temporary.write_text("{}")
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
    """Deliver SIGINT and SIGTERM at the end of the block.

    An encoder that has just been started would write its file after the clean-up. Outside the main
    thread the signals are not deferred, because Python changes handlers only there.
    """
    received: list[int] = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    deferred = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
    # A handler that was not installed from Python reads as None and cannot be restored.
    restorable = [number for number in deferred if signal.getsignal(number) is not None]
    handlers = {n: signal.signal(n, lambda number, _: received.append(number)) for n in restorable}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in received:
            signal.raise_signal(late)


def check_writable(path: Path) -> None:
    """Check that a file can be written at ``path``; leave nothing behind.

    Raises:
        InvalidSettings: if the path is a folder, or its folder does not accept new files.
    """
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
            f"cannot write into {folder}: {error.strerror}; choose another output with -o"
        ) from None
