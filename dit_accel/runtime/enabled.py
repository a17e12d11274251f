"""What is enabled on a pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dit_accel import hooks
from dit_accel.hooks.active_pipeline import transformers_of
from dit_accel.runtime.session import Session


def sessions_of(target: Any) -> list[Session]:
    """The sessions that are enabled on the transformers of a pipeline, each once."""
    owners = [hooks.owner_of(transformer) for transformer in transformers_of(target).values()]
    return list({id(o): o for o in owners if isinstance(o, Session)}.values())


def session_of(target: Any) -> Session | None:
    """The session that is enabled on a pipeline or transformer, if any."""
    return next(iter(sessions_of(target)), None)


@contextmanager
def preserved(target: Any) -> Iterator[None]:
    """What is enabled on a pipeline is the same afterwards."""
    before = session_of(target)
    profile = before.profile if before and before.sparse else None
    guidance = before.guidance if before else None
    try:
        yield
    finally:
        for session in sessions_of(target):
            session.uninstall()
        if before is not None:
            Session(target, before.family, profile, guidance)
