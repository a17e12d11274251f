"""The perturbed branch of a run: which forwards it follows, what it runs, and what it adds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dit_accel.clock import Moment
from dit_accel.guidance.config import PerturbedGuidance
from dit_accel.guidance.heads import HeadSet, block_of
from dit_accel.guidance.perturb import JointTokens, needs_attention, soft_perturbation
from dit_accel.seam import Again, DenseCall, Layer, Prefix, cache_without_contexts, foreign_states
from dit_accel.stopwatch import Stopwatch
from dit_accel_pipelines import Family, TokenLayout

Role = Literal["cond", "uncond", "both"]

_ROLES: dict[str, Role] = {"cond": "cond", "uncond": "uncond", "cond_uncond": "both"}
_UNNAMED: dict[tuple[bool, str], Role] = {  # by whether guidance is one batch; cond comes first
    (True, "call0"): "both",
    (False, "call0"): "cond",
    (False, "call1"): "uncond",
}


class PerturbedBranch:
    """Guidance on one pipeline.

    The difference ``scale (cond - perturbed)`` is added to the conditional *and* to the unconditional
    prediction: ``uncond + g (cond - uncond)`` then becomes that plus the difference, for every g, also where
    the pipeline changes g from step to step or keeps it to itself.
    """

    def __init__(self, settings: PerturbedGuidance, heads: HeadSet, family: Family) -> None:
        self.settings, self.heads, self.family = settings, heads, family
        self.running = False
        self.forwards = 0
        self.stopwatch = Stopwatch()
        self.remarks: set[str] = set()
        self._role: Role | None = None
        self._scale = 0.0
        self._rows = slice(None)
        self._difference: Tensor | None = None
        self._prefix: Prefix | None = None
        self._prefixes: dict[nn.Module, Prefix] = {}
        self._indices: dict[tuple[tuple[str, int], torch.device], Tensor | None] = {}

    # Before and around a forward.

    def begin_forward(self, moment: Moment, arguments: Mapping[str, Any], pipe: Any) -> None:
        """A clean forward begins: is it one to guide?"""
        if moment.new_run:
            self.forget()
            self.forwards = 0
            self.stopwatch.reset()
            self.remarks.clear()
        self._role = self._role_of(moment)
        if self._role == "uncond":
            return
        self._difference = None
        if self._role is None or not self.settings.holds(moment.step, moment.num_steps):
            self._role = None
            return
        self._scale = self._scale_at(moment, pipe)
        batch = arguments["hidden_states"].shape[0]
        doubled = self._role == "both" and _is_doubled(arguments["hidden_states"], pipe)
        self._role = "both" if doubled else "cond"
        self._rows = slice(batch // 2, None) if doubled else slice(None)
        if getattr(pipe, "guidance_rescale", 0.0):
            self.remarks.add(
                "guidance_rescale of the pipeline also rescales what perturbed guidance adds"
            )
        if self._scale == 0.0:
            self._role = None

    def _role_of(self, moment: Moment) -> Role | None:
        unnamed = _UNNAMED.get((self.family.cfg == "one batch", moment.branch))
        return _ROLES.get(moment.branch, unnamed)

    def _scale_at(self, moment: Moment, pipe: Any) -> float:
        if not self.settings.adaptive:
            return self.settings.scale
        timesteps = getattr(getattr(pipe, "scheduler", None), "timesteps", None)
        if timesteps is None:
            raise RuntimeError("adaptive guidance needs the timesteps of a pipeline's scheduler")
        return self.settings.scale_at(float(timesteps[moment.step]))

    @contextmanager
    def recording(self, transformer: nn.Module) -> Iterator[None]:
        """Around the clean forward: time it, and keep what the perturbed one can share."""
        if self._role not in ("cond", "both"):
            yield
            return
        if not self.forwards:
            _refuse_caches(transformer, self.settings)
        device = next(transformer.parameters()).device
        self._prefix = self._prefix_of(transformer)
        with self.stopwatch("clean", device):
            if self._prefix is None:
                yield
            else:
                with self._prefix.recording():
                    yield

    def _prefix_of(self, transformer: nn.Module) -> Prefix | None:
        if not self.settings.share_prefix:
            return None
        if transformer not in self._prefixes:
            first = next(iter(self.heads.heads))
            leading: dict[str, int] = {}
            for stack, block in self.heads.model.in_order():
                if (stack, block) == first:
                    break
                leading[stack] = block + 1
            self._prefixes[transformer] = Prefix(transformer, leading)
        prefix = self._prefixes[transformer]
        refusal = prefix.refusal()
        if refusal is not None:
            self.remarks.add(
                f"the perturbed forward shares no blocks with the clean one: {refusal}"
            )
            return None
        return prefix if prefix.blocks else None

    # After it.

    def guide(
        self, transformer: nn.Module, arguments: Mapping[str, Any], output: Any, again: Again
    ) -> Any:
        """The guided output of a forward."""
        if self._role is None:
            return output
        clean = _sample_of(output)
        if self._role == "uncond":
            difference = self._difference
            return output if difference is None else _with_sample(output, clean + difference)
        cond = clean[self._rows]
        with self.stopwatch("perturbed", clean.device):
            weak = _sample_of(self._run(again, self._sliced(arguments)))
        difference = self._rescaled(cond, self._scale * (cond - weak))
        self._difference = difference if self._role == "cond" else None
        self.forwards += 1
        return _with_sample(
            output, clean + (torch.cat([difference] * 2) if self._role == "both" else difference)
        )

    def _run(self, again: Again, arguments: Mapping[str, Any]) -> Any:
        self.running = True
        try:
            if self._prefix is None:
                return again(arguments)
            with self._prefix.replaying(self._rows):
                return again(arguments)
        finally:
            self.running = False
            if self._prefix is not None:
                self._prefix.forget()

    def _sliced(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The conditional half of what has a batch."""
        if self._rows == slice(None):
            return {}
        batch = arguments["hidden_states"].shape[0]
        return {
            name: _half(arguments[name], batch, self._rows)
            for name in self.family.batched
            if name in arguments
        }

    def _rescaled(self, cond: Tensor, difference: Tensor) -> Tensor:
        """The difference, shrunk towards keeping the standard deviation of the prediction."""
        share = self.settings.rescale
        if not share:
            return difference
        dims = tuple(range(1, cond.dim()))
        kept = cond.float().std(dims, keepdim=True)
        now = (cond + difference).float().std(dims, keepdim=True)
        return difference * (share * kept / now + (1.0 - share)).to(difference.dtype)

    # Inside the perturbed forward.

    def attend(
        self,
        layer: Layer,
        dense: DenseCall,
        layout: TokenLayout,
        unperturbed: Callable[[], Tensor],
    ) -> Tensor:
        """One self-attention call ``[B, S, H, D]`` of the perturbed forward."""
        place = block_of(layer.name)
        chosen = self.heads.heads.get(place)
        settings = self.settings
        if chosen is None or settings.softness == 0.0:
            return unperturbed()
        query = dense.query
        scale = query.shape[-1] ** -0.5 if dense.scale is None else dense.scale
        text = query.shape[1] - layout.visual_tokens if self.family.joint else 0
        tokens = JointTokens(
            *(query, dense.key, dense.value, scale, dense.mask, text, layout.text_first)
        )
        heads = self._heads_at(place, chosen, query)
        kind = (settings.softness, settings.perturbation, settings.text_mode)
        needed = needs_attention(tokens, heads, settings.softness, settings.text_mode)
        return soft_perturbation(unperturbed() if needed else None, tokens, heads, *kind)

    def _heads_at(
        self, place: tuple[str, int], chosen: tuple[int, ...], query: Tensor
    ) -> Tensor | None:
        """Indices on the device, copied there once; None for all heads."""
        if len(chosen) == query.shape[2]:
            return None
        key = (place, query.device)
        if key not in self._indices:
            self._indices[key] = torch.tensor(chosen, device=query.device)
        return self._indices[key]

    def forget(self) -> None:
        """Free what a run keeps."""
        self._difference, self._role = None, None
        for prefix in self._prefixes.values():
            prefix.forget()

    def report(self) -> dict[str, Any]:
        """Settings, guided forwards of the latest run, and their seconds beside the clean ones."""
        return {
            **dataclasses.asdict(self.settings),
            "heads": self.heads.spec(),
            "forwards": self.forwards,
            "shared_blocks": self._prefix.blocks if self._prefix else 0,
            "blocks": len(self.heads.model.in_order()),
            "seconds": self.stopwatch.seconds(),
        }


def _refuse_caches(transformer: nn.Module, settings: PerturbedGuidance) -> None:
    """Refuse diffusers' caches that would mix up branches or steps."""
    cache = cache_without_contexts(transformer)
    if cache is not None:
        raise RuntimeError(
            f"perturbed guidance cannot run beside {cache}, which keeps one state for all branches of a step: "
            "disable that cache"
        )
    counter = next(foreign_states(transformer), None)
    if counter is not None and settings.interval[0] > 0:
        raise RuntimeError(
            f"perturbed guidance with an interval that begins late cannot run beside {type(counter).__name__}, "
            "which counts the steps of each branch: begin at 0, or disable that cache"
        )


def _is_doubled(hidden_states: Tensor, pipe: Any) -> bool:
    """Whether a batch is [uncond, cond]: the pipeline says so, or both halves have the same latents."""
    told = getattr(pipe, "do_classifier_free_guidance", None)
    if isinstance(told, bool):
        return told
    batch = hidden_states.shape[0]
    return batch % 2 == 0 and torch.equal(*hidden_states.chunk(2))


def _half(value: Any, batch: int, rows: slice) -> Any:
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == batch:
        return value[rows]
    if isinstance(value, Mapping):
        return {k: _half(v, batch, rows) for k, v in value.items()}
    return value


def _sample_of(output: Any) -> Tensor:
    sample: Tensor = output[0]
    return sample


def _with_sample(output: Any, sample: Tensor) -> Any:
    if isinstance(output, tuple):
        return (sample, *output[1:])
    return type(output)(**{**output, "sample": sample})
