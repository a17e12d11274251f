"""The session: what ``enable_sparse_attention`` returns. It owns all state, decides dense or
sparse, and reports.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.hooks.hooks import CacheContext
from torch import Tensor, nn

from dit_accel import seam
from dit_accel.call import AttentionCall
from dit_accel.clock import Moment, RunClock
from dit_accel.config import Schedule, crossover_tokens
from dit_accel.methods import Dense, Method, find_method
from dit_accel.ops import Ops
from dit_accel.precision import Chosen, Precision, checked_precision, choose
from dit_accel.report import AttentionReport, Tally
from dit_accel_kernels import Precision as KernelPrecision
from dit_accel_pipelines import Family, TokenLayout, find_family


class Session:
    """Sparse attention on one pipeline (or bare transformer), from ``enable`` to ``close``.

    Use it as a context manager to disable at the end of a block. State of a method is kept per
    (transformer, layer, branch, shape) and dropped when a run ends or a new one begins.
    """

    def __init__(
        self,
        target: Any,
        family: Family,
        method: Method,
        schedule: Schedule,
        precision: Precision = "full",
        dense_precision: Precision = "full",
    ) -> None:
        self.family, self.method, self.schedule = family, method, schedule
        self.precision, self.dense_precision = precision, dense_precision
        self._chosen: dict[Precision, Chosen] = {}
        self._clock = RunClock(target if isinstance(target, DiffusionPipeline) else None)
        self._tally = Tally()
        self._ops = Ops(self._tally.stopwatch)
        self._moment: Moment | None = None
        self._layout: TokenLayout | None = None
        self._installations: list[seam.Installation] = []
        try:
            for stack, transformer in transformers_of(target).items():
                self._installations.append(seam.install(transformer, stack, family, self))
        except BaseException:
            self.close()
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
        """Restore the pipeline: the same processor objects, no hook. Closing twice is safe."""
        for installation in self._installations:
            installation.uninstall()
        self._installations = []

    def report(self) -> AttentionReport:
        """Counts, densities and seconds of the latest run."""
        return AttentionReport(
            method=self.method.name,
            config={
                **dataclasses.asdict(self.method),
                "schedule": dataclasses.asdict(self.schedule),
            },
            precision={
                "sparse": self._ran(self.precision),
                "dense": self._ran(self.dense_precision),
            },
            remarks=[chosen.remark for chosen in self._chosen.values() if chosen.remark],
            family=self.family.name,
            calls={kind: self._tally.calls[kind] for kind in ("dense", "sparse", "fallback")},
            fallbacks=dict(self._tally.fallbacks),
            density=self._tally.density(),
            seconds=self._tally.stopwatch.seconds(),
            layers=self._tally.layer_densities(),
        )

    # What the seam calls.

    def begin_forward(
        self,
        stack: str,
        arguments: Mapping[str, Any],
        config: Mapping[str, Any],
        context: CacheContext | None,
    ) -> None:
        """A transformer's forward begins."""
        moment = self._clock.tick(context, arguments.get("timestep"))
        if moment.new_run:
            self._forget()
            self._tally.reset()
        for installation in self._installations:
            for name in installation.replaced(stack):
                self._tally.fallback(f"the processor of {name} was replaced: enable again")
        self._moment, self._layout = moment, self.family.layout(arguments, config)

    def end_forward(self) -> None:
        self._moment = self._layout = None

    def end_run(self) -> None:
        """The pipeline call is over: free the state, keep the report."""
        self._forget()
        self._clock.stop()

    def fall_back(self, reason: str, dense: seam.DenseCall) -> Tensor:
        """Run a call dense that cannot be sparse, and count why."""
        self._tally.fallback(reason)
        return self._timed_dense(dense)

    def attend(
        self,
        layer: seam.Layer,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        dense: seam.DenseCall,
    ) -> Tensor:
        """One self-attention call ``[B, S, H, D]``: dense by schedule, sparse by the method's plan,
        or a fallback.
        """
        moment, layout = self._moment, self._layout
        if moment is None or layout is None:
            return self.fall_back("attention called outside the transformer's forward", dense)
        if layout.visual_tokens != query.shape[1]:
            return self.fall_back("tokens do not match the grid of the transformer's input", dense)
        if self._scheduled_dense(layer, moment):
            return self._dense(dense, scale)
        least = self.schedule.min_tokens
        least = crossover_tokens(query.device.type) if least is None else least
        if query.shape[1] < least:
            return self.fall_back(f"fewer than {least} tokens", dense)
        call = AttentionCall(
            query,
            key,
            value,
            scale,
            layer.index,
            layer.count,
            moment.step,
            moment.num_steps,
            moment.branch,
            layout,
        )
        return self._sparse(call, layer, dense)

    def _scheduled_dense(self, layer: seam.Layer, moment: Moment) -> bool:
        return (
            isinstance(self.method, Dense)
            or self.schedule.step_is_dense(moment.step, moment.num_steps)
            or self.schedule.layer_is_dense(layer.index, layer.count)
        )

    def _sparse(self, call: AttentionCall, layer: seam.Layer, dense: seam.DenseCall) -> Tensor:
        place = (call.branch, tuple(call.query.shape))
        if place not in layer.states:
            layer.states[place] = self.method.new_state()
        plan = self.method.plan(call, layer.states[place], self._ops)
        if plan is None:
            return self._dense(dense, call.scale)
        self._tally.sparse(f"{layer.stack}.{layer.name}", self._ops.density(plan.block_map))
        return self._ops.run(plan, call, self._choose(self.precision, call.query))

    def _dense(self, dense: seam.DenseCall, scale: float) -> Tensor:
        self._tally.dense()
        precision = self._choose(self.dense_precision, dense.query)
        if precision == "full":
            return self._timed_dense(dense)
        return self._ops.quantized(dense.query, dense.key, dense.value, scale, precision)

    def _choose(self, asked: Precision, query: Tensor) -> KernelPrecision:
        """What an asked precision means on the device that this session runs on, decided once."""
        if asked not in self._chosen:
            self._chosen[asked] = choose(asked, query.device)
        return self._chosen[asked].precision

    def _ran(self, asked: Precision) -> str:
        return self._chosen[asked].precision if asked in self._chosen else asked

    def _timed_dense(self, dense: seam.DenseCall) -> Tensor:
        with self._tally.stopwatch("dense", dense.query.device):
            return dense()

    def _forget(self) -> None:
        for installation in self._installations:
            for layer in installation.layers:
                layer.states.clear()


def transformers_of(target: Any) -> dict[str, nn.Module]:
    """The transformers of a pipeline by component name, or a bare transformer itself."""
    if isinstance(target, nn.Module):
        return {"transformer": target}
    found = {name: getattr(target, name, None) for name in ("transformer", "transformer_2")}
    return {name: module for name, module in found.items() if isinstance(module, nn.Module)}


def sessions_of(target: Any) -> list[Session]:
    """The sessions that are enabled on the transformers of a pipeline, each once."""
    owners = [seam.owner_of(transformer) for transformer in transformers_of(target).values()]
    return list({id(o): o for o in owners if isinstance(o, Session)}.values())


def session_of(target: Any) -> Session | None:
    """The session that is enabled on a pipeline or transformer, if any."""
    return next(iter(sessions_of(target)), None)


def enable_sparse_attention(
    target: Any,
    method: str | Method = "svg2",
    *,
    schedule: Schedule | None = None,
    precision: Precision = "full",
    dense_precision: Precision = "full",
) -> Session:
    """Make the self-attention of a diffusers pipeline (or bare transformer) sparse; replaces what
    was enabled before.

    Args:
        target: a ``DiffusionPipeline`` or a transformer module.
        method: a name (its default knobs) or a method such as ``SVG2(top_p=0.85)``.
        schedule: which steps and layers stay dense.
        precision: of the sparse calls: ``"full"``, ``"int8"`` (queries and keys), ``"int8-fp8"``
            (also weights and values, from compute capability 8.9), or ``"auto"``. On a CPU the
            quantized ones are simulated, which is slow, and the report says so.
        dense_precision: likewise, of the calls that the schedule leaves dense.

    Returns:
        The session; ``disable_sparse_attention`` or ``session.close()`` undoes everything.

    Raises:
        ValueError: for an unknown method or precision.
        UnknownFamily: for a transformer that no family declares.
        UnsupportedProcessor: for a processor that we cannot lead; the pipeline is unchanged then.
    """
    if isinstance(method, str):
        method = find_method(method)()
    precision = checked_precision("precision", precision)
    dense_precision = checked_precision("dense_precision", dense_precision)
    transformers = transformers_of(target)
    if not transformers:
        raise ValueError(f"{type(target).__name__} has no transformer to make sparse")
    for name, transformer in transformers.items():
        if hasattr(transformer, "_orig_mod"):
            raise ValueError(
                f"{name} is a torch.compile'd module: enable sparse attention first, "
                "or compile with transformer.compile_repeated_blocks()"
            )
    found = [find_family(transformer) for transformer in transformers.values()]
    for transformer, family in zip(transformers.values(), found, strict=True):
        seam.check_processors(transformer, family)
    disable_sparse_attention(target)
    return Session(target, found[0], method, schedule or Schedule(), precision, dense_precision)


def enable_quantized_attention(target: Any, precision: Precision = "auto") -> Session:
    """Run all self-attention of a pipeline (or bare transformer) dense, in a quantized precision;
    replaces what was enabled before. For both, give precisions to ``enable_sparse_attention``.

    Args:
        target: a ``DiffusionPipeline`` or a transformer module.
        precision: ``"int8"``, ``"int8-fp8"`` or ``"auto"``, as in ``enable_sparse_attention``.

    Returns:
        The session; ``disable_quantized_attention`` or ``session.close()`` undoes everything.

    Raises:
        ValueError, UnknownFamily, UnsupportedProcessor: as ``enable_sparse_attention``.
    """
    return enable_sparse_attention(target, Dense(), dense_precision=precision)


def disable_sparse_attention(target: Any) -> None:
    """Restore a pipeline or transformer exactly; without an enabled session this does nothing."""
    for session in sessions_of(target):
        session.close()


def disable_quantized_attention(target: Any) -> None:
    """The inverse of ``enable_quantized_attention``: the same as ``disable_sparse_attention``."""
    disable_sparse_attention(target)


def attention_report(target: Any) -> AttentionReport:
    """What the latest run on a pipeline did.

    Raises:
        RuntimeError: if sparse attention is not enabled on it.
    """
    session = session_of(target)
    if session is None:
        raise RuntimeError("no attention report: call enable_sparse_attention first")
    return session.report()


def add_verbs() -> None:
    """Give every diffusers pipeline the verbs of this module as methods."""
    verbs = (
        enable_sparse_attention,
        disable_sparse_attention,
        enable_quantized_attention,
        disable_quantized_attention,
        attention_report,
    )
    for verb in verbs:
        setattr(DiffusionPipeline, verb.__name__, verb)
