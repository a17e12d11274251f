"""Find the session that is enabled on a pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dit_accel.hooks import handler_of
from dit_accel.hooks.active_pipeline import transformers_of
from dit_accel.runtime.session import Session


def sessions_of(target: Any) -> list[Session]:
    """Return the sessions that are enabled on the transformers of a pipeline, each once."""
    handlers = [handler_of(transformer) for transformer in transformers_of(target).values()]
    return list({id(h): h for h in handlers if isinstance(h, Session)}.values())


def session_of(target: Any) -> Session | None:
    """Return the session that is enabled on a pipeline or transformer, if any."""
    return next(iter(sessions_of(target)), None)


@contextmanager
def preserved_session(target: Any) -> Iterator[None]:
    """Take a pipeline's session off while a ``with`` block runs, and put it back on exit."""
    before = sessions_of(target)
    for session in before:
        session.uninstall()
    try:
        yield
    finally:
        for session in sessions_of(target):
            session.uninstall()
        for session in before:
            session.install()
