"""The perturbed branch of a run: which forwards it follows, what it runs, and what it adds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dit_accel.core.timer import Timer
from dit_accel.guidance.cache_checks import refuse_caches, stores_keys
from dit_accel.guidance.config import PerturbedGuidance
from dit_accel.guidance.heads import HeadSet, block_of
from dit_accel.guidance.noise import noise_levels
from dit_accel.guidance.perturb import JointTokens, needs_attention, soft_perturbation
from dit_accel.guidance.pipeline_checks import deviations
from dit_accel.hooks import BlockReuse, DenseCall, Layer, RerunForward, foreign_states
from dit_accel.hooks.active_pipeline import reported_guidance, running_guider
from dit_accel.hooks.step_tracker import StepInfo
from dit_accel_pipelines import Family, TokenLayout

Role = Literal["cond", "both", "other"]

# Of forwards in a pipeline: "both" is [uncond, cond] in one batch; what is "other" gets what "cond" got.
_ROLES: dict[str, Role] = {
    "cond": "cond",
    "uncond": "other",
    "cond_uncond": "both",
    "pred_cond": "cond",  # of diffusers' guiders
    "pred_uncond": "other",
    "uncond_stg": "other",  # of LTX-2
    "uncond_modality": "other",
}

SEVERAL = (
    "several forwards of a step were guided, each by itself, as nothing tells which is the conditional one: "
    "name them with transformer.cache_context('cond') and transformer.cache_context('uncond')"
)


class PerturbedBranch:
    """Guidance on one pipeline.

    The difference ``scale (cond - perturbed)`` is added to the conditional *and* to every other prediction of
    the step: ``uncond + g (cond - uncond)`` then becomes that plus the difference, for every g, also where the
    pipeline changes g from step to step or keeps it to itself. So does what is added to it from differences of
    predictions (SD3's skip-layer guidance).
    """

    def __init__(self, settings: PerturbedGuidance, heads: HeadSet, family: Family) -> None:
        self.settings, self.heads, self.family = settings, heads, family
        self.running = False
        self.forwards = 0
        self.timer = Timer()
        self.remarks: set[str] = set()
        self._role: Role | None = None
        self._scale = 0.0
        self._rows = slice(None)
        self._difference: Tensor | None = None
        self._prefix: BlockReuse | None = None
        self._prefixes: dict[nn.Module, BlockReuse] = {}
        self._device = torch.device("cpu")
        self._perturbed = 0  # calls of this forward
        # Of a run:
        self._in_vain = False  # none of a forward could be perturbed: the others are not guided
        self._told = False  # of how the pipeline combines predictions
        self._checked: set[nn.Module] = set()
        self._doubled: dict[int, bool] = {}  # by batch
        self._levels: list[float] = []  # of noise, by step
        self._indices: dict[tuple[tuple[str, int], torch.device], Tensor | None] = {}

    # Before and around a forward.

    def begin_forward(self, moment: StepInfo, arguments: Mapping[str, Any], pipe: Any) -> None:
        """A clean forward begins, of a pipeline or of none: is it one to guide?"""
        if moment.new_run:
            self._begin_run()
        hidden = arguments["hidden_states"]
        self._device = hidden.device
        self._role = self._role_of(moment, pipe)
        if self._role is not None and stores_keys(arguments):
            self.remarks.add("forwards that store keys of reference images are not guided")
            self._role = None
        if self._role == "other" and self._difference is not None:
            self._tell_deviations(pipe)
        if self._role in (None, "other"):
            return
        self._difference = None
        self._scale = 0.0
        if not self._in_vain and self.settings.holds(moment.step, moment.num_steps):
            self._scale = self._scale_at(moment, pipe)
        if not self._scale:
            self._role = None
            return
        doubled = self._role == "both" and self._is_doubled(hidden, pipe)
        self._role = "both" if doubled else "cond"
        self._rows = slice(len(hidden) // 2, None) if doubled else slice(None)
        if doubled:
            self._tell_deviations(pipe)
        elif pipe is None and moment.branch.startswith("call") and moment.branch != "call0":
            self._tell_several()

    def _tell_deviations(self, pipe: Any) -> None:
        """Once in a run, of a pipeline with classifier-free guidance."""
        if not self._told:
            self._told = True
            self.remarks.update(deviations(pipe, self.family))

    def _tell_several(self) -> None:
        if running_guider()[1] is None:
            self.remarks.add(SEVERAL)

    def _begin_run(self) -> None:
        self.forget()
        self.forwards = 0
        self._in_vain = self._told = False
        self.timer.reset()
        for memory in (self.remarks, self._checked, self._doubled, self._levels):
            memory.clear()

    def _role_of(self, moment: StepInfo, pipe: Any) -> Role | None:
        """What a forward is, by its cache context or a modular pipeline's guider; without one, the first of a step
        is the one to guide, and a bare transformer's forwards all are.
        """
        name, numbered = moment.branch, moment.branch.startswith("call")
        if numbered and pipe is None:
            name = running_guider()[1] or name
        if name in _ROLES:
            return _ROLES[name]
        if not numbered or name != moment.branch:
            self.remarks.add(f"forwards in the context {name!r} are not guided")
            return None
        if pipe is not None and name != "call0":
            return "other"
        return "both" if self.family.cfg == "batched" else "cond"

    def _is_doubled(self, hidden_states: Tensor, pipe: Any) -> bool:
        """Whether a batch is [uncond, cond], found out once in a run."""
        batch = hidden_states.shape[0]
        if batch not in self._doubled:
            told = reported_guidance(pipe)
            if told is None:  # a loop of the user's own: both halves then have the same latents
                told = batch % 2 == 0 and torch.equal(*hidden_states.chunk(2))
            self._doubled[batch] = told
        return self._doubled[batch]

    def _scale_at(self, moment: StepInfo, pipe: Any) -> float:
        if not self.settings.adaptive:
            return self.settings.scale
        if not self._levels:
            scheduler = getattr(pipe, "scheduler", None)
            if getattr(scheduler, "timesteps", None) is None:
                raise RuntimeError(
                    "adaptive guidance needs the timesteps of a pipeline's scheduler: leave adaptive out, or "
                    "enable guidance on the pipeline"
                )
            self._levels += noise_levels(scheduler)
        if moment.num_steps is not None and moment.num_steps > len(self._levels):
            raise RuntimeError(
                f"adaptive guidance needs one level of noise for each of {moment.num_steps} steps, and the scheduler "
                f"has {len(self._levels)}, as frames begin one after the other: leave adaptive out"
            )
        return self.settings.scale_at(self._levels[moment.step])

    @contextmanager
    def recording(self, transformer: nn.Module) -> Iterator[None]:
        """Around the clean forward: time it, and keep what the perturbed one can share."""
        if transformer not in self._checked:
            self._checked.add(transformer)
            refuse_caches(transformer, self.settings)
        if self._role not in ("cond", "both"):
            yield
            return
        self._prefix = self._prefix_of(transformer)
        with self.timer("clean", self._device):
            if self._prefix is None:
                yield
            else:
                with self._prefix.recording():
                    yield

    def _prefix_of(self, transformer: nn.Module) -> BlockReuse | None:
        if not self.settings.share_prefix:
            return None
        if transformer not in self._prefixes:
            first = next(iter(self.heads.heads))
            leading: dict[str, int] = {}
            for stack, block in self.heads.model.in_order():
                if (stack, block) == first:
                    break
                leading[stack] = block + 1
            self._prefixes[transformer] = BlockReuse(transformer, leading)
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
        self, transformer: nn.Module, arguments: Mapping[str, Any], output: Any, again: RerunForward
    ) -> Any:
        """The guided output of a forward."""
        if self._role is None:
            return output
        clean = _sample_of(output)
        if self._role == "other":
            difference = self._difference
            if difference is None or difference.shape != clean.shape:
                return output
            return _with_sample(output, clean + difference)
        cond = clean[self._rows]
        with self.timer("perturbed", clean.device):
            weak = _sample_of(self._run(again, self._sliced(arguments)))
        if not self._perturbed and not any(foreign_states(transformer)):  # caches skip calls
            self._in_vain = True
            self.remarks.add(
                "guidance ended: no attention of the chosen heads could be perturbed, as its keys are not those "
                "of its queries alone, or its mask is no tensor"
            )
            return output
        noise = self._noise_channels(cond, arguments["hidden_states"])
        difference = self._rescaled(cond, self._scale * (cond - weak), noise)
        self._difference = difference
        self.forwards += 1
        return _with_sample(
            output, clean + (torch.cat([difference] * 2) if self._role == "both" else difference)
        )

    def _run(self, again: RerunForward, arguments: Mapping[str, Any]) -> Any:
        self.running, self._perturbed = True, 0
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
            for name in self.family.batch_arguments
            if name in arguments
        }

    @staticmethod
    def _noise_channels(cond: Tensor, hidden_states: Tensor) -> slice:
        """The channels of a prediction that are not a learned variance."""
        channels = hidden_states.shape[1]
        learned = cond.dim() == 4 and cond.shape[1] == 2 * channels
        return slice(channels) if learned else slice(None)

    def _rescaled(self, cond: Tensor, difference: Tensor, noise: slice) -> Tensor:
        """The difference, shrunk towards keeping the standard deviation of the prediction."""
        share = self.settings.rescale
        if not share:
            return difference
        dims = tuple(range(1, cond.dim()))
        kept = cond[:, noise].float().std(dims, keepdim=True)
        now = (cond + difference)[:, noise].float().std(dims, keepdim=True)
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
        place, settings = block_of(layer.name), self.settings
        chosen = self.heads.heads.get(place)
        query = dense.query
        text = query.shape[1] - layout.visual_tokens if self.family.joint else 0
        crossed = query.shape[1] != dense.key.shape[1]  # to an image prompt, for instance
        if chosen is None or crossed or dense.causal or text < 0:
            return unperturbed()
        self._perturbed += 1
        scale = query.shape[-1] ** -0.5 if dense.scale is None else dense.scale
        tokens = JointTokens(
            *(query, dense.key, dense.value, scale, dense.mask, text, layout.text_first)
        )
        heads = self._heads_at(place, chosen, query)
        kind = (settings.softness, settings.perturbation, settings.text_mode)
        left = needs_attention(tokens, heads, settings.softness, settings.text_mode)
        attention: Tensor | None = None
        if left == "all":
            attention = unperturbed()
        elif left == "text":
            attention = of_rows(dense, tokens.text_range)
        return soft_perturbation(attention, tokens, heads, *kind)

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
            "seconds": self.timer.seconds(),
        }


def of_rows(dense: DenseCall, rows: slice) -> Tensor:
    """Dense attention of some of the queries."""
    mask = dense.mask
    if mask is not None and mask.dim() >= 2 and mask.shape[-2] > 1:
        mask = mask[..., rows, :]
    return dataclasses.replace(dense, query=dense.query[:, rows], mask=mask)()


def _half(value: Any, batch: int, rows: slice) -> Any:
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == batch:
        return value[rows]
    if isinstance(value, Mapping):
        return {k: _half(v, batch, rows) for k, v in value.items()}
    if isinstance(value, list) and len(value) == batch and not _has_tensor(value):
        return value[rows]
    if isinstance(value, list | tuple):
        return type(value)(_half(v, batch, rows) for v in value)
    return value


def _has_tensor(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_tensor, value))
    return isinstance(value, Tensor | Mapping)


def _sample_of(output: Any) -> Tensor:
    sample: Tensor = output if isinstance(output, Tensor) else output[0]  # Kandinsky 5
    return sample


def _with_sample(output: Any, sample: Tensor) -> Any:
    if isinstance(output, Tensor):
        return sample
    if isinstance(output, tuple):
        return (sample, *output[1:])
    return type(output)(**{**output, "sample": sample})
