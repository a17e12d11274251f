"""Run the self-attention calls of diffusers' transformers: sparse, dense by the schedule, or as a fallback."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from dit_accel.core.attention_call import AttentionCall, CallContext
from dit_accel.hooks import DenseCall, Layer
from dit_accel.hooks.step_tracker import StepInfo
from dit_accel.methods import Method
from dit_accel.runtime.dispatch import CallFacts, MethodRunner, has_other_dtype, unsupported_reason
from dit_accel.runtime.profile import Profile
from dit_accel.runtime.run_state import PERTURBED, Forward, Run, StateKey
from dit_accel_pipelines import Family, TokenLayout


class AttentionRunner(MethodRunner):
    """Routes the calls of a family's transformers and runs them.

    Args:
        family: Family of the transformers.
        profile: How attention runs.
    """

    def __init__(self, family: Family, profile: Profile) -> None:
        super().__init__(profile)
        self.family = family

    def attend(self, run: Run, forward: Forward | None, layer: Layer, dense: DenseCall) -> Tensor:
        """Return the attention of a call, ``[B, S, H, D]``.

        Args:
            run: State of the run.
            forward: State of the forward; None outside of one.
            layer: The attention module that is called.
            dense: The call as diffusers would make it.
        """
        facts = self._facts(run, forward, dense)
        reason = unsupported_reason(facts)
        if reason is not None or forward is None:
            return _fall_back(run, str(reason), dense)
        call = _attention_call(forward.step_info, layer, dense, facts.layout)
        route = self.route(
            call.context,
            run,
            tokens=call.tokens,
            has_grid=not call.layout.is_line,
            min_tokens=self.min_tokens(call.query.device.type),
            dense_reason=forward.dense_reason or run.guard.reason(layer.full_name),
        )
        if route.method is not None and self.profile.precision == "full":
            run.advisor.check(route.method, call.query, runs=route.reason is None)
        if route.reason is not None:
            return _fall_back(run, route.reason, dense)
        if route.observer is not None:
            for key, sample in _states(forward, call, layer):
                self.observe(sample, run, route.observer, key)
        attended = None
        if route.method is not None:
            attended = self._attend_sparse(run, forward, route.method, call, layer)
        return self._attend_dense(run, dense, call) if attended is None else attended

    def _facts(self, run: Run, forward: Forward | None, dense: DenseCall) -> CallFacts:
        tokens = dense.query.shape[1]
        layout = forward.layout if forward is not None else None
        if layout is None:
            run.most_tokens = max(run.most_tokens, tokens)
        elif self.family.variable_text:
            layout = replace(layout, text_tokens=max(0, tokens - layout.visual_tokens))
        batched = layout.for_batch(dense.query.shape[0]) if layout is not None else None
        return CallFacts(
            tokens=tokens,
            keys=dense.key.shape[1],
            layout=batched or layout,
            other_batch=layout is not None and batched is None,
            masked=dense.mask is not None,
            unreadable_mask=dense.has_foreign_mask,
            causal=dense.causal,
            in_forward=forward is not None,
            joint=self.family.joint,
            most_tokens=run.most_tokens,
            other_dtype=has_other_dtype(dense.query),
        )

    def _attend_sparse(
        self, run: Run, forward: Forward, method: Method, call: AttentionCall, layer: Layer
    ) -> Tensor | None:
        """Return sparse attention, or None if the method prefers dense attention."""
        outputs, densities = [], []
        for key, sample in _states(forward, call, layer):
            attended = self.run_method(sample, run, method, key)
            if attended is None:
                return None
            outputs.append(attended.out)
            densities.append(attended.density)
            if self.profile.guard.mode != "off":
                with run.stats.timer("guard", call.query.device):
                    run.guard.record(sample, attended.out, layer.full_name)
        density = densities[0] if len(densities) == 1 else torch.stack(densities).mean()
        run.stats.count_sparse(layer.full_name, density)
        return call.join(outputs)

    def _attend_dense(self, run: Run, dense: DenseCall, call: AttentionCall) -> Tensor:
        """Return dense attention in the precision of dense calls."""
        run.stats.count_dense()
        precision = self.precisions.resolve_dense(self.profile.dense_precision, dense.query)
        if precision == "full":
            return _timed(run, dense)
        outputs = [
            run.ops.quantized(sample.query, sample.key, sample.value, sample.scale, precision)
            for sample in call.samples()
        ]
        return call.join(outputs)


def _attention_call(
    info: StepInfo, layer: Layer, dense: DenseCall, layout: TokenLayout | None
) -> AttentionCall:
    return AttentionCall(
        query=dense.query,
        key=dense.key,
        value=dense.value,
        scale=dense.softmax_scale,
        context=CallContext(
            step=info.step,
            num_steps=info.num_steps,
            layer=layer.index,
            num_layers=layer.count,
            component=layer.component,
            branch=info.branch,
        ),
        layout=layout or TokenLayout(1, 1, dense.query.shape[1]),
    )


def _states(
    forward: Forward, call: AttentionCall, layer: Layer
) -> Iterator[tuple[StateKey, AttentionCall]]:
    """Yield the samples of a call, each with the key of its state."""
    for index, sample in enumerate(call.samples()):
        key = StateKey(
            *(layer.id, forward.step_info.stream, call.context.branch == PERTURBED),
            *(forward.calls[layer.id], index, tuple(sample.query.shape)),
        )
        yield key, sample


def _fall_back(run: Run, reason: str, dense: DenseCall) -> Tensor:
    """Run a call dense that cannot be sparse, and count the reason."""
    run.stats.count_fallback(reason)
    return _timed(run, dense)


def _timed(run: Run, dense: DenseCall) -> Tensor:
    with run.stats.timer("dense", dense.query.device):
        return dense()
