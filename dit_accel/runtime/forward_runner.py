"""Run one forward of a transformer: in the context of its cache, guided, guarded and counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dit_accel.hooks.streams import find_latents
from dit_accel.runtime.run_state import PERTURBED, Forward

if TYPE_CHECKING:
    from dit_accel.hooks import ForwardCall, RerunForward
    from dit_accel.hooks.installations import Installations
    from dit_accel.runtime.levers import Levers
    from dit_accel.runtime.run_contexts import RunContext


@dataclass(frozen=True)
class ForwardRunner:
    """Runs one forward, which has begun.

    Attributes:
        context: State of the pipeline that runs it.
        installations: The installations of the session.
        levers: The levers besides attention, if acceleration is enabled.
        degree: Number of devices that share a sequence.
    """

    context: RunContext
    installations: Installations
    levers: Levers | None
    degree: int

    def run(self, call: ForwardCall, pipe: Any) -> Any:
        """Return the output of a call, guided if guidance is enabled.

        Args:
            call: The call.
            pipe: The pipeline that runs it, or None.
        """
        driving = self.levers.driving(self.context, call, pipe) if self.levers else None
        with driving or nullcontext(call) as driven:
            return self._run_guided(driven)

    def _run_guided(self, call: ForwardCall) -> Any:
        guidance = self.context.guidance
        if guidance is None:
            return self._run_guarded(call)
        again = call.with_own_lists()
        with guidance.recording(call.module):
            output = self._run_guarded(call)
        rerun = self._perturbed_forward(again)
        return guidance.guide(call.module, again.arguments, output, rerun)

    def _run_guarded(self, call: ForwardCall) -> Any:
        """Run a forward. Run it again, dense, if the guard found output that is not finite."""
        context, again = self.context, call.with_own_lists()
        assert context.forward is not None
        latents = find_latents(call.arguments)
        device = torch.device("cpu") if latents is None else latents.device
        with context.run.stats.time_forward(device):
            output = call.run()
        self._count(context.forward, call.component)
        if context.run.guard.check():
            context.run.states.clear()
            context.forward = context.forward.again_dense()
            output = again.run()
        return output

    def _count(self, forward: Forward, component: str) -> None:
        """Count a forward as computed or skipped, by the attention modules that it called."""
        layers = self.installations.count_layers(component)
        deciding = self.levers.deciding_layers if self.levers is not None else None
        self.context.run.stats.count_forward(component, len(forward.calls), layers, deciding)

    def _perturbed_forward(self, call: ForwardCall) -> RerunForward:
        """Return a function that runs the forward of a call in the perturbed branch."""
        context, levers = self.context, self.levers

        def rerun(replaced: Mapping[str, Any]) -> Any:
            assert context.forward is not None
            again = call.replace(replaced)
            info = dataclasses.replace(context.forward.step_info, branch=PERTURBED, new_run=False)
            layout = context.forward.layout
            if replaced:
                layout = context.run.find_layout(info.branch, again, self.degree)
            context.forward = Forward(info, layout)
            perturbing = levers.perturbing(call, PERTURBED) if levers is not None else None
            with perturbing or call.in_context(PERTURBED):
                return self._run_guarded(again)

        return rerun
