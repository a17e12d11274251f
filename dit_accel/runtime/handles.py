"""Handles that the verbs return, with which one enabled feature is ended again."""

from __future__ import annotations

import abc
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from dit_accel.guidance.config import PerturbedGuidance
    from dit_accel.guidance.heads import HeadSet
    from dit_accel.guidance.perturbed_branch import PerturbedBranch
    from dit_accel.runtime.levers import Levers
    from dit_accel.runtime.report import AttentionReport
    from dit_accel.runtime.session import Quantization, Session


class Closable(abc.ABC):
    """Base of objects that end something when they are closed, or at the end of a ``with`` block."""

    @abc.abstractmethod
    def close(self) -> None:
        """End it. Closing twice is safe."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Handle(Closable):
    """A feature of a pipeline. Closing the handle leaves what was enabled later.

    Args:
        sessions: Returns the sessions that are enabled on the target at the time.
    """

    def __init__(self, sessions: Callable[[], list[Session]]) -> None:
        self._sessions = sessions


class QuantizationHandle(_Handle):
    """Handle that `enable_quantized_attention` returns."""

    def __init__(self, sessions: Callable[[], list[Session]], quantization: Quantization) -> None:
        super().__init__(sessions)
        self._quantization = quantization

    def close(self) -> None:
        """End quantized attention. Sparse attention and guidance stay."""
        for session in self._sessions():
            if session.quantization is self._quantization:
                session.set_quantization(None)

    def report(self) -> AttentionReport:
        """Return the report of the latest run.

        Raises:
            RuntimeError: If nothing is enabled any more.
        """
        for session in self._sessions():
            return session.report()
        raise RuntimeError("no attention report: quantized attention was disabled")


class GuidanceHandle(_Handle):
    """Handle that `enable_perturbed_guidance` returns."""

    def __init__(self, sessions: Callable[[], list[Session]], branch: PerturbedBranch) -> None:
        super().__init__(sessions)
        self._branch = branch

    @property
    def heads(self) -> HeadSet:
        """Return the heads that are perturbed."""
        return self._branch.heads

    @property
    def settings(self) -> PerturbedGuidance:
        """Return the settings of guidance."""
        return self._branch.settings

    def close(self) -> None:
        """End guidance. Sparse and quantized attention stay."""
        for session in self._sessions():
            if session.guidance is self._branch:
                session.end_guidance()


class AccelerationHandle(_Handle):
    """Handle that `enable_acceleration` returns."""

    def __init__(self, sessions: Callable[[], list[Session]], levers: Levers) -> None:
        super().__init__(sessions)
        self.levers = levers

    def close(self) -> None:
        """End acceleration. Quantized attention and guidance stay."""
        for session in self._sessions():
            if session.levers is self.levers:
                session.end_levers()

    def report(self) -> AttentionReport:
        """Return the report of the latest run.

        Raises:
            RuntimeError: If nothing is enabled any more.
        """
        for session in self._sessions():
            return session.report()
        raise RuntimeError("no attention report: acceleration was disabled")

    def num_steps(self) -> int | None:
        """Return the number of steps of the latest run; None if it is unknown."""
        return next((session.latest_steps() for session in self._sessions()), None)
