"""Write files atomically: a reader sees the whole file or none."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dit_accel.errors import InvalidSettings, RunFailed, first_line

TEMPORARY = re.compile(r"\.dit-accel-[0-9a-f]{8}(\.\w{1,12})?")
"""Names of temporary files. They are short, because a legal name must not become too long."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file that becomes ``path`` on success and is removed on failure.

    A link is followed: the file that it names is written, and the link stays. SIGINT and SIGTERM are deferred until
    the file is complete. Temporary files that killed processes left in the folder are removed.

    Raises:
        RunFailed: if the file cannot be written.

    Example:
        >>> with atomic_write(Path("report.json")) as temporary:
        ...     temporary.write_text("{}")
    """
    target = follow_link(path)
    with defer_signals():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            sweep_temporaries(target.parent)
            with _temporary_beside(target) as temporary:
                yield temporary
                if not temporary.stat().st_size:
                    raise OSError("nothing was written")
                temporary.replace(target)
        except OSError as error:
            reason = error.strerror or first_line(error)
            raise RunFailed(f"cannot write {path}: {reason}") from error


def follow_link(path: Path) -> Path:
    """Return the file that a link names, also if it is missing; every other path is returned as it is."""
    # Unlike pathlib's, these functions take names that are too long.
    return Path(os.path.realpath(path)) if os.path.islink(path) else path  # noqa: PTH114


@contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    """Create a temporary file in the folder of a path, locked while its process lives."""
    while True:
        ending = path.suffix if re.fullmatch(r"\.\w{1,12}", path.suffix, re.ASCII) else ""
        temporary = path.with_name(f".dit-accel-{uuid.uuid4().hex[:8]}{ending}")
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            # Another process may be sweeping the file, or may have swept it.
            _lock(descriptor, wait=True)
            if temporary.exists():
                yield temporary
                return
        finally:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)


def sweep_temporaries(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder; those of living processes stay."""
    paths: list[Path] = []
    with contextlib.suppress(OSError):
        paths = [path for path in folder.iterdir() if TEMPORARY.fullmatch(path.name)]
    for path in paths:
        # A file that cannot be opened or locked may be in use.
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                if _lock(descriptor, wait=False):
                    path.unlink()
            finally:
                os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file until it is closed, and return True; return False if another process holds the lock."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):  # some systems and network file systems have no locks
        return False
    return True


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
    """Check that a file can be written at ``path``; leave nothing behind, nor what killed processes left there.

    Raises:
        InvalidSettings: as `check_name` and `check_folder`.
    """
    check_name(path)
    check_folder(path)


def check_name(path: Path) -> None:
    """Check that a file may have a name.

    Raises:
        InvalidSettings: if the name is too long or no text, or if something else than a file or a read-only file
            is there.
    """
    _check_text(path)
    target = follow_link(path)
    if os.path.islink(target):  # noqa: PTH114
        raise InvalidSettings(f"output {path} is a link that leads back to itself: remove it")
    _check_length(target)
    if target.is_dir():
        raise InvalidSettings(f"output {path} is a folder: give a file name")
    if target.exists() and not target.is_file():
        raise InvalidSettings(f"output {path} is a device or a pipe: give a file name")
    if target.exists() and not os.access(target, os.W_OK):
        raise InvalidSettings(f"output {path} is read-only: give another name")


def check_folder(path: Path) -> None:
    """Check that the folder of a file accepts new files; remove the temporary files of killed processes from it.

    Raises:
        InvalidSettings: if it does not.
    """
    folder = _existing_folder(follow_link(path))
    if not folder.is_dir():
        raise InvalidSettings(f"output {path}: {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidSettings(f"cannot write into {folder}: choose another output with -o")
    sweep_temporaries(folder)
    try:
        with _temporary_beside(folder / path.name):
            pass
    except OSError as error:
        raise InvalidSettings(
            f"cannot write into {folder}: {error.strerror}; choose another output with -o"
        ) from None


def _existing_folder(path: Path) -> Path:
    """Return the nearest existing parent of a path, which is a file if the path leads through one."""
    parents = path.absolute().parents
    return next(parent for parent in parents if os.path.exists(parent))  # noqa: PTH110


def _check_text(path: Path) -> None:
    """Refuse a path that cannot be printed or passed to other programs."""
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidSettings(
            f"output {text!a} is not valid UTF-8: choose another name with -o"
        ) from None
    if "\0" in text:
        raise InvalidSettings(f"output {text!r} has a zero byte: choose another name with -o")


def _check_length(path: Path) -> None:
    """Refuse a path whose names are longer than its file system allows."""
    folder = _existing_folder(path)
    for part in path.absolute().relative_to(folder).parts:
        try:
            os.lstat(folder / part)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise InvalidSettings(
                    f"output name {part[:40]}... is too long with {len(os.fsencode(part))} bytes: choose a shorter one"
                ) from None
