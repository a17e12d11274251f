"""Re-ttention (arXiv 2505.22918): sparse steps reuse attention outside the mask from the last full step."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from dit_accel.core.attention_call import AttentionCall
from dit_accel.core.ops import Ops
from dit_accel.errors import InvalidSettings
from dit_accel.methods.base import (
    Attended,
    Method,
    MethodState,
    check_count,
    check_share,
    refuse_idle,
)
from dit_accel.methods.blocks import uniform_blocks
from dit_accel_kernels import BlockMap

if TYPE_CHECKING:
    from torch import Tensor

Mode = Literal["merge", "paper"]

SMALLEST_SHARE = 1e-6
"""Share outside a mask of single tokens that is told from rounding errors."""


@dataclass(frozen=True)
class Heads:
    """Heads by what they do between full steps, int64 ``[N]`` each.

    Attributes:
        local: Heads that attend only within the mask.
        merged: Heads that merge the mask with the stored rest.
        reused: Heads that repeat their output.
    """

    local: Tensor
    merged: Tensor
    reused: Tensor

    def active(self) -> Tensor:
        """Return the heads that attend."""
        return torch.cat([self.local, self.merged])


@dataclass
class Statistics(MethodState):
    """State of the last full step.

    Attributes:
        mask_state: State of the method that makes the mask.
        block_map, density: The mask and its density.
        heads: What each head does; None if all heads merge.
        rest, rest_lse: Attention over the keys outside the mask ``[B, N, S, D]`` and its log-sum-exp ``[B, N, S]``,
            for the heads that merge.
        mask_lse: Log-sum-exp over the keys of the mask, ``[B, N, S]``.
        repeated: Output ``[B, N, S, D]`` of the heads that repeat it.
        uses: Number of sparse steps since.
    """

    mask_state: Any = None
    block_map: BlockMap | None = None
    density: Tensor | None = None
    heads: Heads | None = None
    rest: Tensor | None = None
    rest_lse: Tensor | None = None
    mask_lse: Tensor | None = None
    repeated: Tensor | None = None
    uses: int = 0


@dataclass(frozen=True, kw_only=True)
class ReTtention(Method):
    """Attention within a mask, merged with attention outside it that was stored at the last full step.

    The log-sum-exps give the weights of the two. A full step runs the mask and its complement, so it costs one full
    attention. With a mask of single tokens it runs the mask and dense attention instead.

    Attributes:
        mode: ``"merge"`` weights the stored rest against the new log-sum-exp of the mask, so the result is always
            normalized. ``"paper"`` is the published rule: rho times the mask's softmax plus (1 - rho) times the rest,
            where rho is the mask's share at the last full step. It grows by ``lam`` with every use.
        mask: A method or its name. Its plan is frozen between full steps. On the command line its knobs are
            ``mask.KNOB``, such as ``mask.block``.
        density: Share of the keys in the mask, if the mask is a name and its method has this knob.
        refresh: Steps from one full step to the next.
        beta: Weight of the new log-sum-exp in ``"merge"``. 1 uses only the new one, and 0 only the stored one.
        lam: Lambda of the paper, for ``"paper"``.
        local_above: Heads whose mean rho is above this drop the rest. 1 selects no head.
        reuse_below: Heads whose mean rho is below this repeat their whole output. 0 selects no head. 1 selects all
            heads that are not local; then no mask is needed, and a full step is one dense attention. Other values make
            the host read the mean rhos once per layer at every full step.
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
            raise InvalidSettings(f"lam must be finite, got {self.lam}")
        if self.mode not in ("merge", "paper"):
            raise InvalidSettings(f"mode must be merge or paper, got {self.mode!r}")
        self._refuse_idle_knobs()

    def _refuse_idle_knobs(self) -> None:
        """Raise InvalidSettings for an unknown mask, and if a knob is set that the others leave without effect."""
        if self.repeats_all:
            idle = ("mode", "mask", "density", "beta", "lam")
            refuse_idle(self, idle, "with reuse_below 1: lower it, or leave it out")
        if self.mode == "merge":
            refuse_idle(self, ["lam"], "with mode merge: set mode to paper, or leave it out")
        else:
            refuse_idle(self, ["beta"], "with mode paper: set mode to merge, or leave it out")
        own = getattr(self.inner, "density", None)
        if own is None:
            remedy = f"with mask {self.inner.name}: set the mask's own knobs"
            refuse_idle(self, ["density"], f"{remedy}, or leave it out")
        elif own != self.density:
            refuse_idle(
                self,
                ["density"],
                f"beside a mask of density {own}: set mask.density, or leave it out",
            )

    @cached_property
    def inner(self) -> Method:
        """Return the method whose map is the mask."""
        from dit_accel.methods import find_method  # here, because the table contains this class

        if isinstance(self.mask, Method):
            method = self.mask
        else:
            kind = find_method(self.mask)
            knobs = {"density": self.density} if "density" in _knobs(kind) else {}
            method = kind(**knobs)
        if method.name in ("dense", self.name):
            raise InvalidSettings(f"mask must be a method with a map of its own, got {method.name}")
        return method

    def nested_methods(self) -> dict[str, Method]:
        return {"mask": self.inner}

    @property
    def repeats_all(self) -> bool:
        """Return True if all heads repeat their output between full steps."""
        return self.reuse_below >= 1 and self.local_above >= 1

    @property
    def needs_grid(self) -> bool:
        return self.inner.needs_grid and not self.repeats_all

    @property
    def observes(self) -> bool:
        return self.inner.observes and not self.repeats_all

    def observe(self, call: AttentionCall, state: Statistics, ops: Ops) -> None:
        self.inner.observe(call, state.mask_state, ops)

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
        """Run dense attention and store its output."""
        out = ops.dense(call)
        state.step, state.by, state.uses = call.context.step, self, 0
        state.repeated = out.transpose(1, 2)
        return Attended(out.clone(), torch.ones((), dtype=torch.float32, device=out.device))

    def repeat(self, call: AttentionCall, state: Statistics, ops: Ops) -> Attended:
        """Return the output of the last full step."""
        assert state.repeated is not None
        with ops.timer("attention", call.query.device):
            out = state.repeated.transpose(1, 2).clone()
        state.uses += 1
        return Attended(out, torch.zeros((), dtype=torch.float32, device=out.device))

    def full_step(self, call: AttentionCall, state: Statistics, ops: Ops) -> Attended | None:
        """Run full attention by mask and complement, and store what sparse steps need."""
        if state.by not in (None, self):  # a rule changed the knobs, perhaps the mask
            state.mask_state = self.inner.new_state()
        plan = self.inner.plan(call, state.mask_state, ops)
        if plan is None:
            return None
        mask = plan.block_map
        out, lse = ops.partial(mask, call)
        assert lse is not None
        if self.inner.fine:
            whole, rest, rest_lse = subtract_mask(call, out, lse, ops)
        else:
            rest, maybe_lse = ops.partial(mask.complement(), call)
            assert maybe_lse is not None
            rest_lse = maybe_lse
            whole, _ = ops.merge(out, lse, rest, rest_lse)
        state.step, state.by, state.uses = call.context.step, self, 0
        state.block_map, state.density = mask, plan.density
        state.heads = heads = self.policy(lse, rest_lse, ops)
        state.repeated = None
        if heads is not None:
            state.repeated = whole.index_select(1, heads.reused)
            rest, rest_lse, lse = (t.index_select(1, heads.merged) for t in (rest, rest_lse, lse))
        state.rest, state.rest_lse, state.mask_lse = rest, rest_lse, lse
        density = torch.ones((), dtype=torch.float32, device=whole.device)
        return Attended(whole.transpose(1, 2).contiguous(), density)

    def policy(self, mask_lse: Tensor, rest_lse: Tensor, ops: Ops) -> Heads | None:
        """Decide what each head does until the next full step, by its mean rho over rows and batch."""
        if self.local_above >= 1 and self.reuse_below <= 0:
            return None
        rho = ops.read(torch.sigmoid(mask_lse - rest_lse).mean((0, 2)))
        kinds = [1 if r > self.local_above else 2 if r < self.reuse_below else 0 for r in rho]
        merged, local, reused = (
            torch.tensor(
                [h for h, k in enumerate(kinds) if k == kind], device=mask_lse.device
            ).long()
            for kind in range(3)
        )
        return Heads(local, merged, reused)

    def sparse_step(self, call: AttentionCall, state: Statistics, ops: Ops) -> Attended:
        """Run attention within the mask, and add the stored rest."""
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
                block_map = state.block_map.select_heads(active)
                density = ops.density(block_map) * (active.numel() / whole.shape[1])
                out, lse = ops.partial(block_map, select_heads(call, active))
                assert lse is not None
                local = heads.local.numel()
                whole[:, heads.local] = out[:, :local]
                whole[:, heads.merged] = self.combine(out[:, local:], lse[:, local:], state, ops)
        state.uses += 1
        return Attended(whole.transpose(1, 2).contiguous(), density)

    def combine(self, out: Tensor, lse: Tensor | None, state: Statistics, ops: Ops) -> Tensor:
        """Merge new attention over the mask with the stored rest, ``[B, N, S, D]``."""
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


def subtract_mask(
    call: AttentionCall, out: Tensor, lse: Tensor, ops: Ops
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute dense attention, and the attention outside a mask as the difference.

    Args:
        call: The attention call.
        out: Attention within the mask, ``[B, N, S, D]``.
        lse: Its log-sum-exp, ``[B, N, S]``.
        ops: The ops.

    Returns:
        Dense attention, the attention outside the mask, and the log-sum-exp of the latter.
    """
    order, offsets = uniform_blocks(call, call.tokens)
    one_group = BlockMap(
        offsets.new_ones(*offsets.shape[:2], 1, 1).bool(), order, offsets, order, offsets
    )
    whole, whole_lse = ops.partial(one_group, call)
    assert whole_lse is not None
    with ops.timer("merge", out.device):
        share = (lse - whole_lse).exp()
        outside = (1.0 - share).clamp(min=SMALLEST_SHARE)
        difference = whole.float() - share[..., None] * out.float()
        rest = (difference / outside[..., None]).to(out.dtype)
        return whole, rest, whole_lse + outside.log()


def select_heads(call: AttentionCall, heads: Tensor) -> AttentionCall:
    """Return the call of some heads, int64 ``[N]``."""
    query, key, value = (t.index_select(2, heads) for t in (call.query, call.key, call.value))
    return replace(call, query=query, key=key, value=value)
