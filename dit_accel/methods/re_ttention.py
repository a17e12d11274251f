"""Re-ttention (arXiv 2505.22918): what a sparse step leaves out is remembered from the last full one."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from dit_accel.core.attention_call import AttentionCall
from dit_accel.core.ops import Ops
from dit_accel.methods.base import Attended, Method, MethodState, check_count, check_share
from dit_accel_kernels import BlockMap

if TYPE_CHECKING:
    from torch import Tensor

Mode = Literal["merge", "paper"]


@dataclass(frozen=True)
class Heads:
    """Which heads do what between full steps, int64 ``[N]`` each: attend only within the mask; merge with
    the rest; repeat their output.
    """

    local: Tensor
    merged: Tensor
    reused: Tensor

    def active(self) -> Tensor:
        """Those that attend at all."""
        return torch.cat([self.local, self.merged])


@dataclass
class Statistics(MethodState):
    """The last full step: the mask's own memory and map; attention over the rest ``[B, N, S, D]`` with its
    log-sum-exp and that of the mask, ``[B, N, S]``, for the heads that merge; the whole output
    ``[B, N, S, D]`` of those that repeat it; and how often it was used since.
    """

    mask_state: Any = None
    block_map: BlockMap | None = None
    density: Tensor | None = None
    heads: Heads | None = None  # None: all merge
    rest: Tensor | None = None
    rest_lse: Tensor | None = None
    mask_lse: Tensor | None = None
    repeated: Tensor | None = None
    uses: int = 0


@dataclass(frozen=True, kw_only=True)
class ReTtention(Method):
    """Between full steps only a mask is attended. The rest, attention over the keys outside the mask,
    is kept from the last full step and added in the share that the log-sum-exps tell. A full step runs
    the mask and its complement, and so costs one full attention.

    Attributes:
        mode: ``"merge"`` weighs the kept rest against the fresh log-sum-exp of the mask: always
            normalised. ``"paper"`` is the published rule: the mask's softmax times its share rho of the
            last full step, which grows by ``lam`` with every use, plus (1 - rho) times the rest.
        mask: a method's name or a method; its plan is frozen from one full step to the next.
        density: share of the keys in the mask, for a mask given by name that has such a knob.
        refresh: steps from one full step to the next.
        beta: how far the weight follows the fresh log-sum-exp (``merge``): 1 entirely, 0 not at all.
        lam: lambda of the paper (``paper``).
        local_above: heads whose mean rho is above this keep no rest; 1: none.
        reuse_below: heads whose mean rho is below this repeat their whole output; 0: none; 1: all that
            are not local. With one of the two the host reads the mean rhos, once per layer at every full
            step, but if all repeat: that needs no mask, and a full step is one dense attention.
    """

    name: ClassVar[str] = "re-ttention"
    source: ClassVar[str] = "Re-ttention, arXiv 2505.22918"

    mode: Mode = "merge"
    mask: str | Method = "neighborhood"
    density: float = 0.15
    refresh: int = 5
    beta: float = 1.0
    lam: float = 0.04
    local_above: float = 1.0
    reuse_below: float = 0.0

    def __post_init__(self) -> None:
        for name in ("density", "beta", "local_above", "reuse_below"):
            check_share(name, getattr(self, name))
        check_count("refresh", self.refresh)
        if not math.isfinite(self.lam):
            raise ValueError(f"lam must be finite, got {self.lam}")
        if self.mode not in ("merge", "paper"):
            raise ValueError(f"mode must be merge or paper, got {self.mode!r}")
        self.inner  # noqa: B018  # an unknown mask is an error of the knob

    @cached_property
    def inner(self) -> Method:
        """The method whose map is the mask."""
        from dit_accel.methods import find_method  # the table holds this class, too

        if isinstance(self.mask, Method):
            method = self.mask
        else:
            kind = find_method(self.mask)
            knobs = {"density": self.density} if "density" in _knobs(kind) else {}
            method = kind(**knobs)
        if method.name in ("dense", self.name):
            raise ValueError(f"mask must be a method with a map of its own, got {method.name}")
        return method

    @property
    def repeats_all(self) -> bool:
        """Whether all heads repeat their output from one full step to the next."""
        return self.reuse_below >= 1 and self.local_above >= 1

    @property
    def needs_grid(self) -> bool:
        return self.inner.needs_grid and not self.repeats_all

    def new_state(self) -> Statistics:
        return Statistics(mask_state=self.inner.new_state())

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> None:
        raise NotImplementedError("re-ttention attends by itself")

    def attend(self, call: AttentionCall, state: Statistics, ops: Ops) -> Attended | None:
        fresh = state.by is self and call.context.step - state.step < self.refresh
        if fresh:
            ops.count_plan(reused=True)
        if self.repeats_all:
            return self.repeat(call, state, ops) if fresh else self.dense_step(call, state, ops)
        return self.sparse_step(call, state, ops) if fresh else self.full_step(call, state, ops)

    def dense_step(self, call: AttentionCall, state: Statistics, ops: Ops) -> Attended:
        """Dense attention, kept whole."""
        out = ops.dense(call)
        state.step, state.by, state.uses = call.context.step, self, 0
        state.repeated = out.transpose(1, 2)
        return Attended(out.clone(), torch.ones((), device=out.device))

    def repeat(self, call: AttentionCall, state: Statistics, ops: Ops) -> Attended:
        """The output of the last full step."""
        assert state.repeated is not None
        with ops.timer("attention", call.query.device):
            out = state.repeated.transpose(1, 2).clone()
        state.uses += 1
        return Attended(out, torch.zeros((), device=out.device))

    def full_step(self, call: AttentionCall, state: Statistics, ops: Ops) -> Attended | None:
        """Full attention by mask and complement; keeps what sparse steps need."""
        if state.by is not self:  # a rule changed the knobs, perhaps the mask
            state.mask_state = self.inner.new_state()
        plan = self.inner.plan(call, state.mask_state, ops)
        if plan is None:
            return None
        mask = plan.block_map
        out, lse = ops.partial(mask, call)
        rest, rest_lse = ops.partial(mask.complement(), call)
        assert lse is not None
        assert rest_lse is not None
        whole, _ = ops.merge(out, lse, rest, rest_lse)
        state.step, state.by, state.uses = call.context.step, self, 0
        state.block_map, state.density = mask, plan.density
        state.heads = heads = self.policy(lse, rest_lse, ops)
        state.repeated = None
        if heads is not None:
            state.repeated = whole.index_select(1, heads.reused)
            rest, rest_lse, lse = (t.index_select(1, heads.merged) for t in (rest, rest_lse, lse))
        state.rest, state.rest_lse, state.mask_lse = rest, rest_lse, lse
        return Attended(whole.transpose(1, 2).contiguous(), torch.ones((), device=whole.device))

    def policy(self, mask_lse: Tensor, rest_lse: Tensor, ops: Ops) -> Heads | None:
        """What each head does until the next full step, from its mean rho over rows and batch."""
        if self.local_above >= 1 and self.reuse_below <= 0:
            return None
        rho = ops.read(torch.sigmoid(mask_lse - rest_lse).mean((0, 2)))
        kinds = [1 if r > self.local_above else 2 if r < self.reuse_below else 0 for r in rho]
        merged, local, reused = (
            torch.tensor(
                [h for h, k in enumerate(kinds) if k == wanted], device=mask_lse.device
            ).long()
            for wanted in range(3)
        )
        return Heads(local, merged, reused)

    def sparse_step(self, call: AttentionCall, state: Statistics, ops: Ops) -> Attended:
        """The mask alone, and what is remembered of the rest."""
        assert state.block_map is not None
        assert state.density is not None
        heads, density = state.heads, state.density
        if heads is None:
            out, lse = ops.partial(state.block_map, call)
            whole = self.combine(out, lse, state, ops)
        else:
            active = heads.active()
            whole = call.query.transpose(1, 2).new_empty(call.query.transpose(1, 2).shape)
            density = torch.zeros_like(density)
            assert state.repeated is not None
            whole[:, heads.reused] = state.repeated
            if active.numel():
                block_map = state.block_map.of_heads(active)
                density = ops.density(block_map) * (active.numel() / whole.shape[1])
                out, lse = ops.partial(block_map, of_heads(call, active))
                assert lse is not None
                local = heads.local.numel()
                whole[:, heads.local] = out[:, :local]
                whole[:, heads.merged] = self.combine(out[:, local:], lse[:, local:], state, ops)
        state.uses += 1
        return Attended(whole.transpose(1, 2).contiguous(), density)

    def combine(self, out: Tensor, lse: Tensor | None, state: Statistics, ops: Ops) -> Tensor:
        """Output over all keys from the fresh one over the mask and the kept rest, ``[B, N, S, D]``."""
        assert lse is not None
        assert state.rest is not None
        assert state.rest_lse is not None
        assert state.mask_lse is not None
        weight = state.mask_lse
        if self.mode == "merge":  # where the mask has no key, both are -inf
            weight = weight + self.beta * (lse - weight).nan_to_num(0.0)
        whole, _ = ops.merge(out, weight, state.rest, state.rest_lse)
        if self.mode == "paper" and state.uses:
            whole = whole + self.lam * state.uses * out
        return whole


def _knobs(kind: type[Method]) -> set[str]:
    return {f.name for f in fields(kind)}


def of_heads(call: AttentionCall, heads: Tensor) -> AttentionCall:
    """A call of some heads, int64 ``[N]``."""
    query, key, value = (t.index_select(2, heads) for t in (call.query, call.key, call.value))
    return replace(call, query=query, key=key, value=value)
