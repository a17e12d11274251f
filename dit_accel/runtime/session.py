"""The session: all that is enabled on one pipeline. It owns all state, decides dense or sparse,
perturbed or not, and reports.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch
from diffusers.hooks.hooks import CacheContext
from torch import Tensor, nn

from dit_accel import hooks
from dit_accel.core.attention_call import AttentionCall
from dit_accel.core.ops import Ops
from dit_accel.core.precision import PrecisionResolver
from dit_accel.core.schedule import CallContext, crossover_tokens
from dit_accel.guidance.perturbed_branch import PerturbedBranch
from dit_accel.hooks.active_pipeline import (
    ordinary,
    pipeline_ref,
    running_pipeline,
    transformers_of,
)
from dit_accel.hooks.layout_cache import LayoutCache
from dit_accel.hooks.step_tracker import StepInfo, StepTracker
from dit_accel.methods import Dense, Method
from dit_accel.runtime.cost_model import SlowdownAdvisor
from dit_accel.runtime.guard import GuardMonitor
from dit_accel.runtime.profile import Profile, knobs_of
from dit_accel.runtime.report import AttentionReport, RunStats
from dit_accel_pipelines import Family, TokenLayout

IDLE = Profile(method=Dense())


class Session:
    """What is enabled on one pipeline (or bare transformer): sparse attention, guidance, or both.

    ``enable_sparse_attention`` returns it; use it as a context manager to disable that at the end of a
    block. State of a method is kept per (transformer, layer, branch, shape) and dropped when a run ends
    or a new one begins.

    Args:
        target: a pipeline or a transformer.
        family: of its transformers.
        profile: how attention runs; None: as without us.
        guidance: the perturbed branch, if any.
    """

    def __init__(
        self,
        target: Any,
        family: Family,
        profile: Profile | None,
        guidance: PerturbedBranch | None = None,
    ) -> None:
        self.family, self.guidance = family, guidance
        self.sparse = profile is not None
        self.profile = profile or IDLE
        self._pipe = pipeline_ref(target)
        self._variants: dict[tuple[int, ...], Method] = {}  # by the rules that hold
        self._held: set[int] = set()
        self._watch, self._adviser = GuardMonitor(self.profile.guard), SlowdownAdvisor()
        self._running_again = False
        self._calls: Counter[int] = (
            Counter()
        )  # of this forward, by layer: one for each sample in Mochi
        self._choices = PrecisionResolver()
        self._clock = StepTracker(self._pipe() if self._pipe else None)
        self._tally = RunStats()
        self._ops = Ops(self._tally.timer, self._tally.plans)
        self._moment: StepInfo | None = None
        self._layout: TokenLayout | None = None
        self._layouts = LayoutCache(family)
        self._degree = 1  # devices that share a sequence
        self._most_tokens = 0  # where no layout tells which calls are the picture's
        self._installations: list[hooks.Installation] = []
        try:
            for stack, transformer in transformers_of(target).items():
                self._installations.append(hooks.install(transformer, stack, family, self))
        except BaseException:
            self.uninstall()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End sparse attention; closing twice is safe. Without guidance the pipeline is what it was: the
        same processor objects, no hook.
        """
        self.sparse, self.profile, self._watch = False, IDLE, GuardMonitor(IDLE.guard)
        self._variants.clear()
        self._choices.clear()
        self._held.clear()
        self._forget()
        if self.guidance is None:
            self.uninstall()

    def end_guidance(self) -> None:
        """End guidance likewise."""
        self.guidance = None
        if not self.sparse:
            self.uninstall()

    def uninstall(self) -> None:
        """Restore the pipeline, whatever is enabled."""
        for installation in self._installations:
            installation.uninstall()
        self._installations = []

    def report(self) -> AttentionReport:
        """Counts, densities and seconds of the latest run."""
        return AttentionReport(
            method=self.profile.method.name,
            config={
                **knobs_of(self.profile.method),
                "schedule": dataclasses.asdict(self.profile.schedule),
                "guard": dataclasses.asdict(self.profile.guard),
            },
            precision={
                "sparse": self._choices.ran(self.profile.precision),
                "dense": self._choices.ran(self.profile.dense_precision),
            },
            remarks=self._remarks(),
            family=self.family.name,
            calls={kind: self._tally.calls[kind] for kind in ("dense", "sparse", "fallback")},
            fallbacks=dict(self._tally.fallbacks),
            plans={kind: self._tally.plans[kind] for kind in ("made", "reused")},
            faults=dict(self._watch.faults),
            density=self._tally.density(),
            seconds=self._tally.timer.seconds(),
            layers=self._tally.layer_densities(),
            guidance=self.guidance.report() if self.guidance else None,
        )

    def serves(self, target: Any) -> bool:
        """Whether everything of a pipeline or transformer is installed here, and its steps are known."""
        own = {id(installation.transformer) for installation in self._installations}
        wanted = {id(transformer) for transformer in transformers_of(target).values()}
        pipe = self._pipe() if self._pipe else None
        return wanted <= own and (pipeline_ref(target) is None or pipe is target)

    def _remarks(self) -> list[str]:
        """Of precisions that are not simply what was asked for, of settings without effect in a run, and of
        guidance that is not what the formula says.
        """
        remarks = self._choices.remarks()
        rules = self.profile.schedule.rules if self._tally.calls.total() else ()
        unused = (i for i in range(len(rules)) if i not in self._held)
        remarks += sorted(self.guidance.remarks) if self.guidance else []
        remarks += self._adviser.remarks
        if self._tally.calls.total() and not isinstance(self.profile.method, Dense):
            remarks += self.profile.schedule.without_effect(self._clock.num_steps)
        return remarks + [f"rule {i} of the schedule never held" for i in unused]

    # What the seam calls.

    def begin_forward(
        self,
        stack: str,
        arguments: Mapping[str, Any],
        config: Mapping[str, Any],
        context: CacheContext | None,
    ) -> None:
        """A transformer's forward begins."""
        degree = max((i.ulysses_degree() for i in self._installations), default=1)
        self._degree = degree
        hooks.check_shared(degree, self.guidance is not None, self.profile.guard.mode)
        pipe = self._running()
        self._clock.follow(pipe)
        moment = self._clock.tick(context, arguments.get("timestep", arguments.get("t")))
        if moment.new_run:
            self._forget()
            self._tally.reset()
            self._watch.faults.clear()
            self._held.clear()
            self._adviser = SlowdownAdvisor()
            self._most_tokens = 0
        for installation in self._installations:
            for name in installation.replaced(stack):
                self._tally.fallback(f"the processor of {name} was replaced: enable again")
        self._moment = moment
        self._layout = self._layout_of(moment, arguments, config)
        self._calls.clear()
        if self.guidance is not None:
            self.guidance.begin_forward(moment, arguments, ordinary(pipe))

    def _layout_of(
        self, moment: StepInfo, arguments: Mapping[str, Any], config: Mapping[str, Any]
    ) -> TokenLayout | None:
        degree = self._degree
        apart = degree > 1 and any(hooks.splits_text(i.transformer) for i in self._installations)
        return self._layouts.of(moment, arguments, config, degree if apart else 1)

    def _running(self) -> Any:
        """The pipeline that runs now, which may be another of the same transformer; where none is found, in a
        loop of one's own, the one this was enabled on.
        """
        found = running_pipeline({i.transformer for i in self._installations})
        return self._pipe() if found is None and self._pipe else found

    def recording(self, module: nn.Module) -> AbstractContextManager[None]:
        """Around the clean forward."""
        return self.guidance.recording(module) if self.guidance else nullcontext()

    def guide(
        self,
        module: nn.Module,
        arguments: Mapping[str, Any],
        output: Any,
        again: hooks.RerunForward,
    ) -> Any:
        """The output of a clean forward, guided. The perturbed forward is a branch of its own."""
        if self.guidance is None or self._moment is None:
            return output

        def perturbed(replaced: Mapping[str, Any]) -> Any:
            assert self._moment is not None
            moment = dataclasses.replace(self._moment, branch=hooks.PERTURBED, new_run=False)
            if replaced:
                config = hooks.config_of(module)
                self._layout = self._layout_of(moment, {**arguments, **replaced}, config)
            self._moment = moment
            self._running_again = False
            self._calls.clear()
            return again(replaced)

        return self.guidance.guide(module, arguments, output, perturbed)

    def may_run_again(self) -> bool:
        """Whether the guard may ask for a second, dense forward."""
        return self.profile.guard.mode == "on"

    def wants_dense_rerun(self) -> bool:
        """Whether the forward that just ended has to run again, dense; then the next one does."""
        self._running_again = self._watch.read()
        if self._running_again:
            self._forget_layers()
            self._calls.clear()
        return self._running_again

    def end_forward(self) -> None:
        """A transformer's forward ends."""
        self._moment = self._layout = None
        self._running_again = False

    def end_run(self) -> None:
        """The pipeline call is over: free the state, keep the report."""
        self._forget()
        if self.guidance is not None:
            self.guidance.forget()
        self._clock.stop()

    def fall_back(self, reason: str, dense: hooks.DenseCall) -> Tensor:
        """Run a call dense that cannot be sparse, and count why."""
        self._tally.fallback(reason)
        return self._timed_dense(dense)

    def attend(self, layer: hooks.Layer, dense: hooks.DenseCall) -> Tensor:
        """One self-attention call of ``[B, S, H, D]`` tensors."""
        self._calls[layer.id] += 1
        if self.guidance is None or not self.guidance.running or self._layout is None:
            return self._unperturbed(layer, dense)
        return self.guidance.attend(
            layer, dense, self._layout, lambda: self._unperturbed(layer, dense)
        )

    def _unperturbed(self, layer: hooks.Layer, dense: hooks.DenseCall) -> Tensor:
        """Dense by schedule, sparse by the method's plan, or a fallback."""
        query, moment, layout = dense.query, self._moment, self._layout
        if layout is None and self.family.joint and moment is not None:
            return self.fall_back("which tokens are text is not known for such inputs", dense)
        if layout is None:
            self._most_tokens = max(self._most_tokens, query.shape[1])
            if query.shape[1] < self._most_tokens:
                return self.fall_back("fewer tokens than the largest attention has", dense)
            layout = TokenLayout(1, 1, query.shape[1])
        if dense.mask is not None and not layout.parts:
            return self.fall_back("attention mask", dense)
        if dense.causal:
            return self.fall_back("causal attention", dense)
        if query.shape[1] != dense.key.shape[1]:
            return self.fall_back("queries and keys of different length", dense)
        if moment is None:
            return self.fall_back("attention called outside the transformer's forward", dense)
        if self.family.crops_text:
            rest = query.shape[1] - layout.visual_tokens
            layout = dataclasses.replace(layout, text_tokens=max(0, rest))
        if layout.visual_tokens + layout.text_tokens != query.shape[1]:
            return self.fall_back("tokens do not match the grid of the transformer's input", dense)
        scale = query.shape[-1] ** -0.5 if dense.scale is None else dense.scale
        place = CallContext(
            moment.step,
            moment.num_steps,
            layer.index,
            layer.count,
            layer.stack,
            moment.branch,
        )
        rules = self.profile.schedule.rules_at(place)
        self._held.update(rules)
        method = self._method_by(rules)
        call = AttentionCall(
            query,
            dense.key,
            dense.value,
            scale,
            layer.index,
            layer.count,
            moment.step,
            moment.num_steps,
            moment.branch,
            layout,
        )
        if isinstance(method, Dense) or self.profile.schedule.is_dense(place, rules):
            return self._dense(dense, call)
        if self._running_again:
            return self.fall_back("guard: this forward ran again", dense)
        fault = self._watch.reason(f"{layer.stack}.{layer.name}")
        if fault is not None:
            return self.fall_back(f"guard: {fault}", dense)
        if layout.is_line and method.needs_grid:
            return self.fall_back(f"{method.name} needs tokens that lie in a grid", dense)
        least = self.profile.schedule.min_tokens
        least = crossover_tokens(query.device.type) if least is None else least
        if self.profile.precision == "full":
            self._adviser.look(method, query, query.shape[1] >= least)
        if query.shape[1] < least:
            return self.fall_back(f"fewer than {least} tokens", dense)
        precision = self._choices.of(self.profile.precision, query.device)
        return self._sparse(method, dataclasses.replace(call, precision=precision), layer, dense)

    def _method_by(self, rules: tuple[int, ...]) -> Method:
        """The method with the knobs of some rules; one object per set of rules."""
        if rules not in self._variants:
            self._variants[rules] = self.profile.at(rules)
        return self._variants[rules]

    def _sparse(
        self, method: Method, call: AttentionCall, layer: hooks.Layer, dense: hooks.DenseCall
    ) -> Tensor:
        name, found = f"{layer.stack}.{layer.name}", []
        for number, sample in enumerate(call.samples()):
            owner = (call.branch, self._calls[layer.id], number, tuple(sample.query.shape))
            if owner not in layer.states:
                layer.states[owner] = method.new_state()
            attended = method.attend(sample, layer.states[owner], self._ops)
            if attended is None:
                return self._dense(dense, call)
            found.append(attended)
            if self.profile.guard.mode != "off":
                with self._tally.timer("guard", call.query.device):
                    self._watch.look(sample, attended.out, name)
        densities = [part.density for part in found]
        self._tally.sparse(name, densities[0] if len(found) == 1 else torch.stack(densities).mean())
        return call.joined([part.out for part in found])

    def _dense(self, dense: hooks.DenseCall, call: AttentionCall) -> Tensor:
        self._tally.dense()
        precision = self._choices.of(self.profile.dense_precision, dense.query.device)
        if precision == "full":
            return self._timed_dense(dense)
        return call.joined(
            [
                self._ops.quantized(part.query, part.key, part.value, part.scale, precision)
                for part in call.samples()
            ]
        )

    def _timed_dense(self, dense: hooks.DenseCall) -> Tensor:
        with self._tally.timer("dense", dense.query.device):
            return dense()

    def _forget(self) -> None:
        self._forget_layers()
        self._ops.forget()
        self._watch.begin_run()

    def _forget_layers(self) -> None:
        for installation in self._installations:
            for layer in installation.layers:
                layer.states.clear()
