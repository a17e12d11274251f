"""The session of one pipeline: everything that is enabled on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor

from dit_accel import hooks
from dit_accel.core.precision import Precision
from dit_accel.guidance.perturbed_branch import PerturbedBranch
from dit_accel.hooks.active_pipeline import (
    as_standard_pipeline,
    pipeline_ref,
    running_pipeline,
    transformers_of,
)
from dit_accel.hooks.layout_cache import LayoutCache
from dit_accel.hooks.step_tracker import StepInfo, StepTracker
from dit_accel.methods import Dense
from dit_accel.runtime.attention_runner import AttentionRunner
from dit_accel.runtime.handles import Closable
from dit_accel.runtime.profile import Profile
from dit_accel.runtime.report import AttentionReport, make_report
from dit_accel.runtime.run_state import Forward, Run
from dit_accel_pipelines import Family, TokenLayout

PERTURBED = "perturbed"


@dataclasses.dataclass(frozen=True)
class Quantization:
    """Precisions that `enable_quantized_attention` sets; None keeps that of the profile."""

    sparse: Precision | None
    dense: Precision | None

    def apply(self, profile: Profile) -> Profile:
        """Return a profile with these precisions."""
        return dataclasses.replace(
            profile,
            precision=self.sparse or profile.precision,
            dense_precision=self.dense or profile.dense_precision,
        )


class Session(Closable):
    """Everything that is enabled on one pipeline or bare transformer.

    ``enable_sparse_attention`` returns it. Used as a context manager, it disables sparse attention at the end of the
    block. The state of a method belongs to a (layer, branch, shape). It is dropped when a run ends or a new one begins.

    Args:
        target: A pipeline or a transformer.
        family: Family of its transformers.
        sparse: How attention runs; None if sparse attention is not enabled.
        guidance: The perturbed branch, if perturbed guidance is enabled.
        quantization: Precisions, if quantized attention is enabled.
    """

    def __init__(
        self,
        target: Any,
        family: Family,
        sparse: Profile | None,
        guidance: PerturbedBranch | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        self.family, self.guidance = family, guidance
        self._sparse, self._quantization = sparse, quantization
        self._pipe = pipeline_ref(target)
        self._tracker = StepTracker(self._pipe() if self._pipe else None)
        self._forward: Forward | None = None
        self._degree = 1  # number of devices that share a sequence
        self._installations: list[hooks.Installation] = []
        # Weak, because a session that outlives its pipeline must not keep the weights.
        self._transformers = WeakValueDictionary(transformers_of(target))
        self._configure()
        self._run = self._new_run()
        self.install()

    # Settings.

    @property
    def sparse(self) -> Profile | None:
        """Return the profile of sparse attention, or None if it is not enabled."""
        return self._sparse

    @property
    def quantization(self) -> Quantization | None:
        """Return the precisions of quantized attention, or None if it is not enabled."""
        return self._quantization

    @property
    def profile(self) -> Profile:
        """Return how attention runs, with everything that is enabled."""
        return self._attention.profile

    def set_quantization(self, quantization: Quantization | None) -> None:
        """Enable or end quantized attention. Sparse attention and guidance stay."""
        self._quantization = quantization
        self._configure()
        self._uninstall_if_idle()

    def close(self) -> None:
        """End sparse attention. Closing twice is safe.

        If nothing else is enabled, the pipeline is what it was: it has its own processor objects and no hook.
        """
        self._sparse = None
        self._configure()
        self._uninstall_if_idle()

    def end_guidance(self) -> None:
        """End perturbed guidance. Sparse and quantized attention stay."""
        self.guidance = None
        self._uninstall_if_idle()

    def new_run(self) -> None:
        """Begin a new run with the next forward. Call it between two clips in a loop of your own.

        Pipelines need no call, because a new run is recognized by their scheduler.

        Example:
            >>> session = dit_accel.enable_sparse_attention(transformer, "svg2")
            >>> for latents in clips:
            ...     session.new_run()
            ...     denoise(transformer, latents)
        """
        self.reset()

    def install(self) -> None:
        """Install the session on its transformers, for the first time or again after `uninstall`.

        Raises:
            UnsupportedProcessor: If a processor cannot be redirected. Nothing is changed then.
        """
        try:
            for component, transformer in self._transformers.items():
                installation = hooks.install(transformer, component, self.family, self)
                self._installations.append(installation)
        except BaseException:
            self.uninstall()
            raise

    def uninstall(self) -> None:
        """Restore the transformers. The settings stay, so that the session can be installed again."""
        for installation in self._installations:
            installation.uninstall()
        self._installations = []
        self._run.free()

    def serves(self, target: Any) -> bool:
        """Return True if the session is installed on all transformers of a target and knows its steps."""
        installed = {id(installation.transformer) for installation in self._installations}
        wanted = {id(transformer) for transformer in transformers_of(target).values()}
        pipe = self._pipe() if self._pipe else None
        return wanted <= installed and (pipeline_ref(target) is None or pipe is target)

    def report(self) -> AttentionReport:
        """Return the counts, densities and seconds of the latest run."""
        return make_report(self._run, self.family, self.guidance)

    def _configure(self) -> None:
        """Apply the settings. The latest run stays for the report until the next forward."""
        profile = self._sparse or Profile(method=Dense())
        if self._quantization is not None:
            profile = self._quantization.apply(profile)
        self._attention = AttentionRunner(self.family, profile)

    def _new_run(self) -> Run:
        return Run(self.profile, LayoutCache(self.family), self._attention.precisions)

    def _uninstall_if_idle(self) -> None:
        if self._sparse is None and self.guidance is None and self._quantization is None:
            self.uninstall()

    def __repr__(self) -> str:
        enabled = []
        if self._sparse is not None:
            enabled.append(f"sparse attention {self._sparse.method}")
        if self._quantization is not None:
            enabled.append(f"quantized attention {self._quantization.dense}")
        if self.guidance is not None:
            enabled.append(f"perturbed guidance of {self.guidance.heads.to_spec()}")
        return f"<Session on {self.family.name}: {', '.join(enabled) or 'nothing is enabled'}>"

    # Called by the hooks.

    def forward(self, call: hooks.ForwardCall) -> Any:
        """Run a forward of a transformer, guided and watched by the guard if these are enabled."""
        try:
            self._begin_forward(call)
            if self.guidance is None:
                return self._run_guarded(call)
            with self.guidance.recording(call.module):
                output = self._run_guarded(call)
            rerun = self._perturbed_forward(call)
            return self.guidance.guide(call.module, call.arguments, output, rerun)
        except BaseException:
            self.reset()
            raise
        finally:
            self._forward = None

    def attend(self, layer: hooks.Layer, dense: hooks.DenseCall) -> Tensor:
        """Return the attention of a call, ``[B, S, H, D]``."""
        if self._forward is not None:
            self._forward.calls[layer.id] += 1
        attend = partial(self._attention.attend, self._run, self._forward, layer, dense)
        guidance = self.guidance
        layout = self._forward.layout if self._forward is not None else None
        if guidance is None or not guidance.running or layout is None or dense.has_foreign_mask:
            return attend()
        return guidance.attend(layer, dense, layout, attend)

    def reset(self) -> None:
        """Free the state of the run, because the pipeline's call is over. The report stays."""
        self._run.free()
        self._tracker.reset()
        if self.guidance is not None:
            self.guidance.forget()

    # One forward.

    def _begin_forward(self, call: hooks.ForwardCall) -> None:
        guard = self.profile.guard.mode
        if guard == "on" and any(hooks.foreign_states(call.module)):
            raise RuntimeError(
                "guard 'on' cannot run a forward again under a diffusers cache, which would count it "
                "twice: use guard 'warn', or disable the cache"
            )
        self._degree = max((i.ulysses_degree() for i in self._installations), default=1)
        hooks.check_shared(self._degree, self.guidance is not None, guard)
        pipe = self._running_pipeline()
        self._tracker.follow(pipe)
        timestep = call.arguments.get("timestep", call.arguments.get("t"))
        info = self._tracker.update(call.context, timestep)
        if info.new_run or self._run.profile is not self.profile:
            self._run.free()
            self._run = self._new_run()
        self._run.num_steps = info.num_steps
        for installation in self._installations:
            for name in installation.replaced_layers(call.component):
                reason = f"the processor of {name} was replaced: enable again"
                self._run.stats.count_fallback(reason)
        self._forward = Forward(info, self._layout(info, call))
        if self.guidance is not None:
            self.guidance.begin_forward(info, call.arguments, as_standard_pipeline(pipe))

    def _running_pipeline(self) -> Any:
        """Return the pipeline that runs now.

        In a loop of the user's own, that is the pipeline on which attention was enabled. Several pipelines can share a
        transformer.
        """
        pipe = running_pipeline({i.transformer for i in self._installations})
        return self._pipe() if pipe is None and self._pipe else pipe

    def _layout(self, info: StepInfo, call: hooks.ForwardCall) -> TokenLayout | None:
        splits = self._degree > 1 and hooks.splits_text(call.module)
        assert self._run.layouts is not None
        return self._run.layouts.get(
            info.branch,
            call.arguments,
            hooks.config_of(call.module),
            self._degree if splits else 1,
        )

    def _run_guarded(self, call: hooks.ForwardCall) -> Any:
        """Run a forward. Run it again, dense, if the guard found output that is not finite."""
        output = call.run()
        if self._run.guard.check():
            assert self._forward is not None
            self._run.states.clear()
            self._forward = self._forward.again_dense()
            output = call.run()
        return output

    def _perturbed_forward(self, call: hooks.ForwardCall) -> hooks.RerunForward:
        """Return a function that runs the forward of a call in the perturbed branch."""

        def rerun(replaced: Mapping[str, Any]) -> Any:
            assert self._forward is not None
            again = call.replace(replaced)
            info = dataclasses.replace(self._forward.step_info, branch=PERTURBED, new_run=False)
            layout = self._layout(info, again) if replaced else self._forward.layout
            self._forward = Forward(info, layout)
            with call.in_context(PERTURBED):
                return self._run_guarded(again)

        return rerun
