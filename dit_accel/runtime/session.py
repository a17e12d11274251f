"""The session of one pipeline: everything that is enabled on it."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from contextlib import nullcontext
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor

from dit_accel import hooks
from dit_accel.core.caller import caller_stacklevel
from dit_accel.core.precision import DensePrecision, Precision
from dit_accel.errors import RunFailed
from dit_accel.guidance.perturbed_branch import PerturbedBranch
from dit_accel.hooks.active_pipeline import (
    as_standard_pipeline,
    pipeline_ref,
    running_pipeline,
    transformers_of,
)
from dit_accel.hooks.installations import Installations
from dit_accel.hooks.layout_cache import LayoutCache
from dit_accel.hooks.step_tracker import StepTracker
from dit_accel.hooks.streams import find_latents
from dit_accel.methods import Dense
from dit_accel.runtime.attention_runner import AttentionRunner
from dit_accel.runtime.forward_runner import ForwardRunner
from dit_accel.runtime.guard import check_caches
from dit_accel.runtime.handles import Closable
from dit_accel.runtime.levers import Levers
from dit_accel.runtime.profile import Profile
from dit_accel.runtime.report import AttentionReport, make_report
from dit_accel.runtime.run_contexts import RunContext, RunContexts
from dit_accel.runtime.run_state import Forward, Run
from dit_accel_pipelines import Family


@dataclasses.dataclass(frozen=True)
class Quantization:
    """Precisions that `enable_quantized_attention` sets; None keeps that of the profile."""

    sparse: Precision | None
    dense: DensePrecision | None

    def apply(self, profile: Profile) -> Profile:
        """Return a profile with these precisions. Method dense has no sparse calls."""
        sparse = None if isinstance(profile.method, Dense) else self.sparse
        return dataclasses.replace(
            profile,
            precision=sparse or profile.precision,
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
        levers: What `enable_acceleration` set besides attention.
    """

    def __init__(
        self,
        target: Any,
        family: Family,
        sparse: Profile | None,
        guidance: PerturbedBranch | None = None,
        quantization: Quantization | None = None,
        levers: Levers | None = None,
    ) -> None:
        self.family, self.guidance, self.levers = family, guidance, levers
        self._sparse, self._quantization = sparse, quantization
        self._pipe = pipeline_ref(target)
        self._degree = 1  # number of devices that share a sequence
        self._exclusive = threading.Lock()  # for forwards that exchange blocks or hold a cache
        self._installations = Installations(self, family)
        # Weak, because a session that outlives its pipeline must not keep the weights.
        self._transformers = WeakValueDictionary(transformers_of(target))
        self._configure()
        self._contexts = RunContexts(lambda pipe: RunContext(StepTracker(pipe), self._new_run()))
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

    def end_levers(self) -> None:
        """End acceleration: its levers, and its sparse attention unless another was enabled since.

        Sparse attention that acceleration replaced is enabled again. Quantized attention and guidance stay.
        """
        levers = self.levers
        if levers is None:
            return
        self.uninstall()
        self.levers = None
        if self._sparse is levers.profile:
            self._sparse = levers.replaced
        self._configure()
        if not self._is_idle():
            self.install()

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
        transformers = dict(self._transformers)
        if self.levers is not None:
            self.levers.apply(transformers)
        try:
            self._installations.install(transformers)
        except BaseException:
            self.uninstall()
            raise

    def uninstall(self) -> None:
        """Restore the transformers. The settings stay, so that the session can be installed again."""
        self._installations.uninstall()
        if self.levers is not None:
            self.levers.undo()
        self._contexts.free()

    def serves(self, target: Any) -> bool:
        """Return True if the session is installed on all transformers of a target and knows its steps."""
        transformers = set(transformers_of(target).values())
        pipe = self._pipe() if self._pipe else None
        return transformers <= self._installations.transformers and (
            pipeline_ref(target) is None or pipe is target
        )

    def report(self) -> AttentionReport:
        """Return the counts, densities and seconds of the latest run, first of all of this thread."""
        context = self._contexts.latest
        guidance = context.guidance or self.guidance
        guidance = guidance if self.guidance else None
        return make_report(context.run, self.family, guidance, self.levers)

    def latest_steps(self) -> int | None:
        """Return the number of steps of the latest run; None if it is unknown."""
        return self._contexts.latest.run.num_steps

    def _configure(self) -> None:
        """Apply the settings. The latest run stays for the report until the next forward."""
        profile = self._sparse or Profile(method=Dense())
        if self._quantization is not None:
            profile = self._quantization.apply(profile)
        if self.levers is not None:
            profile = self.levers.adapt(profile)
        self._attention = AttentionRunner(self.family, profile)

    def _new_run(self) -> Run:
        return Run(self.profile, LayoutCache(self.family), self._attention.precisions)

    def _uninstall_if_idle(self) -> None:
        if self._is_idle():
            self.uninstall()

    def _is_idle(self) -> bool:
        enabled = (self._sparse, self.guidance, self._quantization, self.levers)
        return all(feature is None for feature in enabled)

    def __repr__(self) -> str:
        enabled = []
        if self._sparse is not None:
            enabled.append(f"sparse attention {self._sparse.method}")
        if self._quantization is not None:
            enabled.append(f"quantized attention {self._quantization.dense}")
        if self.guidance is not None:
            enabled.append(f"perturbed guidance of {self.guidance.heads.to_spec()}")
        enabled += self.levers.profile.levers() if self.levers else []
        return f"<Session on {self.family.name}: {', '.join(enabled) or 'nothing is enabled'}>"

    # Called by the hooks.

    def forward(self, call: hooks.ForwardCall) -> Any:
        """Run a forward of a transformer, guided and watched by the guard if these are enabled."""
        pipe, own_loop = self._find_pipeline()
        with self._contexts.claim(pipe) as context:
            try:
                shares = self.guidance or (self.levers and self.levers.has_cache)
                with self._exclusive if shares else nullcontext():
                    self._begin_forward(context, call, pipe, own_loop)
                    runner = ForwardRunner(context, self._installations, self.levers, self._degree)
                    return runner.run(call, pipe)
            except BaseException:
                context.reset()
                raise

    def attend(self, layer: hooks.Layer, dense: hooks.DenseCall) -> Tensor:
        """Return the attention of a call, ``[B, S, H, D]``."""
        context = self._contexts.running
        if context is None or context.forward is None:
            self._recover_hook(layer)
            return self._attention.attend(self._contexts.latest.run, None, layer, dense)
        forward = context.forward
        forward.calls[layer.id] += 1
        attend = partial(self._attention.attend, context.run, forward, layer, dense)
        guidance, layout = context.guidance, forward.layout
        if guidance is None or not guidance.running or layout is None or dense.has_foreign_mask:
            return attend()
        return guidance.attend(layer, dense, layout, attend)

    def reset(self) -> None:
        """Free the state of the run, because the pipeline's call is over. The report stays."""
        context = self._contexts.find(self._find_pipeline()[0])
        context.reset()
        if self.levers is not None:
            self.levers.end_run(context)

    # One forward.

    def _recover_hook(self, layer: hooks.Layer) -> None:
        """Hook a transformer again if its forward runs without our hook, because someone replaced the forward.

        Raises:
            RunFailed: If guidance is enabled, because the forward that runs would not be guided.
        """
        if not self._installations.hook_again(layer):
            return
        cause = f"the forward of {layer.component} was replaced after dit_accel was enabled"
        if self.guidance is not None:
            raise RunFailed(
                f"{cause}, so this run would not be guided: the forward is hooked again, so run the pipeline again"
            )
        warnings.warn(f"{cause}: only this forward is dense", stacklevel=caller_stacklevel())

    def _begin_forward(
        self, context: RunContext, call: hooks.ForwardCall, pipe: Any, own_loop: bool
    ) -> None:
        check_caches(self.profile.guard.mode, call.module)
        self._degree = self._installations.ulysses_degree()
        cached = self.levers is not None and self.levers.profile.cache is not None
        hooks.check_shared(self._degree, self.guidance is not None, self.profile.guard.mode, cached)
        timestep = call.arguments.get("timestep", call.arguments.get("t"))
        latents = find_latents(call.arguments)
        info = context.tracker.update(call.context, timestep, latents, own_loop=own_loop)
        if info.new_run or context.run.profile is not self.profile:
            context.run.free()
            context.run = self._new_run()
        run = context.run
        run.num_steps = info.num_steps
        run.under_cache_dit = hooks.has_cache_dit(call.module)
        run.end_streams(context.tracker.streams.take_ended())
        for name in self._installations.replaced_layers(call.component):
            run.stats.count_fallback(f"the processor of {name} was replaced: enable again")
        context.forward = Forward(info, run.find_layout(info.branch, call, self._degree))
        if self.guidance is None:
            context.guidance = None
        elif context.guidance is None or not context.guidance.is_copy_of(self.guidance):
            context.guidance = self.guidance.copy()
        if context.guidance is not None:
            context.guidance.begin_forward(info, call.arguments, as_standard_pipeline(pipe))

    def _find_pipeline(self) -> tuple[Any, bool]:
        """Return the pipeline that runs now, and True in a loop of the user's own.

        In such a loop, it is the pipeline on which attention was enabled. Several pipelines can share a transformer.
        """
        pipe = running_pipeline(self._installations.transformers)
        own_loop = pipe is None
        return self._pipe() if own_loop and self._pipe else pipe, own_loop
