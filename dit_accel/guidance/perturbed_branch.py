"""Perturbed guidance on one pipeline: which forwards it guides, and what it adds to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dit_accel.guidance.cache_checks import stores_keys
from dit_accel.guidance.config import PerturbedGuidance
from dit_accel.guidance.difference import noise_channels, rescale_difference
from dit_accel.guidance.guided_forward import GuidedForward, Role, get_sample, replace_sample
from dit_accel.guidance.guided_run import GuidedRun
from dit_accel.guidance.heads import Block, HeadSet, split_layer_name
from dit_accel.guidance.joint_tokens import JointTokens
from dit_accel.guidance.perturb import needed_attention, soft_perturbation
from dit_accel.hooks import DenseCall, Layer, RerunForward, foreign_states
from dit_accel.hooks.active_pipeline import running_guider
from dit_accel.hooks.step_tracker import StepInfo
from dit_accel_pipelines import Family, TokenLayout

_ROLES: dict[str, Role] = {
    "cond": "cond",
    "uncond": "other",
    "cond_uncond": "both",
    # Predictions of diffusers' guiders.
    "pred_cond": "cond",
    "pred_uncond": "other",
    # Predictions of LTX-2.
    "uncond_stg": "other",
    "uncond_modality": "other",
}

SEVERAL_GUIDED = (
    "several forwards of a step were guided, each on its own, because it is unknown which of them is conditional: "
    "name them with transformer.cache_context('cond') and transformer.cache_context('uncond')"
)

UNMATCHED = (
    "a prediction was not guided, because no conditional prediction of its step has its shape and latents: run the "
    "conditional forward of each window right before its other forwards"
)


class PerturbedBranch:
    """Perturbed guidance, as long as it is enabled on a pipeline.

    The difference ``scale (cond - perturbed)`` is added to the conditional *and* to every other prediction of the
    step. The result ``uncond + g (cond - uncond)`` then changes by exactly that difference, for every g. This holds
    even if the pipeline changes g from step to step or does not reveal it. It also holds for terms that a pipeline
    adds from differences of predictions, such as SD3's skip-layer guidance.

    Args:
        settings: Settings of guidance.
        heads: Heads that are perturbed.
        family: Family of the transformers.
    """

    def __init__(self, settings: PerturbedGuidance, heads: HeadSet, family: Family) -> None:
        self.settings, self.heads, self.family = settings, heads, family
        self._run = GuidedRun()
        self._forward = GuidedForward()
        self._leading_blocks = heads.count_leading_blocks()
        self._head_indices: dict[tuple[Block, torch.device], Tensor] = {}

    def copy(self) -> PerturbedBranch:
        """Return a branch of the same settings with a state of its own."""
        return PerturbedBranch(self.settings, self.heads, self.family)

    def is_copy_of(self, other: PerturbedBranch) -> bool:
        """Return True if two branches have the same settings and heads."""
        return self.settings is other.settings and self.heads is other.heads

    @property
    def remarks(self) -> set[str]:
        """Return how the latest run deviated from guidance's formula."""
        return self._run.remarks

    @property
    def running(self) -> bool:
        """Return True while a perturbed forward runs."""
        return self._forward.is_running

    def begin_forward(self, step_info: StepInfo, arguments: Mapping[str, Any], pipe: Any) -> None:
        """Decide how a clean forward that begins now is guided.

        Args:
            step_info: Step and branch of the forward.
            arguments: Arguments of the forward, by name.
            pipe: The pipeline that runs it. None for a modular pipeline and for a loop of the user's own.

        Raises:
            RunFailed: If an interval or an adaptive scale needs steps that are unknown.
        """
        if step_info.new_run:
            self._run = GuidedRun()
        self._forward = GuidedForward()
        role = self._find_role(step_info, arguments, pipe)
        if role == "other":
            self._forward = GuidedForward("other")
            if self._run.differences.entries:
                self._run.note_deviations(pipe, self.family)
        elif role is not None:
            self._run.differences.begin(step_info.step)
            self._forward = self._plan_forward(role, step_info, arguments["hidden_states"], pipe)

    def _find_role(
        self, step_info: StepInfo, arguments: Mapping[str, Any], pipe: Any
    ) -> Role | None:
        """Return the role of a forward, or None if it is not guided.

        It comes from the cache context or from a modular pipeline's guider. Without them, the first forward of a
        pipeline's step is conditional, and so is every forward of a bare transformer.
        """
        name, is_numbered = step_info.branch, step_info.branch.startswith("call")
        if is_numbered and pipe is None:
            name = running_guider()[1] or name
        role: Role | None
        if name in _ROLES:
            role = _ROLES[name]
        elif not is_numbered or name != step_info.branch:
            self.remarks.add(f"forwards in the context {name!r} are not guided")
            return None
        elif pipe is not None and name != "call0":
            role = "other"
        else:
            role = "both" if self.family.cfg == "batched" else "cond"
        if stores_keys(arguments):
            self.remarks.add("forwards that store keys of reference images are not guided")
            return None
        return role

    def _plan_forward(
        self, role: Role, step_info: StepInfo, hidden_states: Tensor, pipe: Any
    ) -> GuidedForward:
        scale = self._find_scale(step_info, pipe)
        if not scale:
            return GuidedForward()
        if role == "both" and self._run.is_doubled(hidden_states, pipe):
            self._run.note_deviations(pipe, self.family)
            cond_rows = slice(len(hidden_states) // 2, None)
            return GuidedForward("both", hidden_states.device, scale, cond_rows)
        is_later_call = step_info.branch.startswith("call") and step_info.branch != "call0"
        if is_later_call and pipe is None and running_guider()[1] is None:
            self.remarks.add(SEVERAL_GUIDED)
        return GuidedForward("cond", hidden_states.device, scale)

    def _find_scale(self, step_info: StepInfo, pipe: Any) -> float:
        """Return the weight of the difference in a step; 0 if the step is not guided."""
        settings = self.settings
        if self._run.in_vain or not settings.guides_step(*step_info.in_schedule()):
            return 0.0
        if not settings.adaptive:
            return settings.scale
        return settings.compute_scale(self._run.find_noise_level(step_info, pipe))

    @contextmanager
    def recording(self, transformer: nn.Module) -> Iterator[None]:
        """Time the clean forward, and record the block outputs that the perturbed forward can reuse.

        Raises:
            RunFailed: If a cache on the transformer does not work with guidance.
        """
        run, forward = self._run, self._forward
        run.check_transformer(transformer, self.settings)
        if forward.role not in ("cond", "both"):
            yield
            return
        if self.settings.share_prefix:
            forward.prefix = run.find_prefix(transformer, self._leading_blocks, self.family)
        run.shared_blocks = forward.prefix.blocks if forward.prefix else 0
        with (
            run.timer("clean", forward.device),
            forward.prefix.recording() if forward.prefix else nullcontext(),
        ):
            yield

    def guide(
        self, transformer: nn.Module, arguments: Mapping[str, Any], output: Any, rerun: RerunForward
    ) -> Any:
        """Return the guided output of a clean forward.

        Args:
            transformer: The transformer that ran.
            arguments: Arguments of the forward, by name.
            output: Its output.
            rerun: Function that runs the forward again with some arguments replaced.
        """
        run, forward = self._run, self._forward
        if forward.role is None:
            return output
        clean = get_sample(output)
        if forward.role == "other":
            added = run.differences.find(arguments["hidden_states"], clean.shape)
            if added is None and run.differences.entries:
                self.remarks.add(UNMATCHED)
            return output if added is None else replace_sample(output, clean + added)
        cond = clean[forward.rows]
        with run.timer("perturbed", clean.device):
            selected = forward.select_arguments(arguments, self.family.batch_arguments)
            perturbed = get_sample(forward.run_perturbed(rerun, selected))
        # A cache can skip all attention calls of a forward.
        if not forward.perturbed_calls and not any(foreign_states(transformer)):
            run.in_vain = True
            self.remarks.add(
                "guidance ended: no attention of the chosen heads could be perturbed, because its keys come from "
                "other tokens than its queries, or because its mask is not a tensor"
            )
            return output
        difference = rescale_difference(
            cond,
            forward.scale * (cond - perturbed),
            self.settings.rescale,
            noise_channels(cond, arguments["hidden_states"]),
        )
        run.differences.add(arguments["hidden_states"], difference)
        run.forwards += 1
        added = torch.cat([difference] * 2) if forward.role == "both" else difference
        return replace_sample(output, clean + added)

    def attend(
        self,
        layer: Layer,
        dense: DenseCall,
        layout: TokenLayout,
        unperturbed: Callable[[], Tensor],
    ) -> Tensor:
        """Compute one self-attention call of the perturbed forward.

        Args:
            layer: The attention module.
            dense: The call, with tensors ``[B, S, H, D]``.
            layout: Where the visual tokens are.
            unperturbed: Function that computes the call without perturbation.

        Returns:
            The attention ``[B, S, H, D]``, perturbed in the chosen heads.
        """
        block, settings, query = split_layer_name(layer.name), self.settings, dense.query
        heads = self.heads.heads.get(block)
        text = query.shape[1] - layout.visual_tokens if self.family.joint else 0
        # Attention to an image prompt, for instance, has other keys.
        has_other_keys = query.shape[1] != dense.key.shape[1]
        if heads is None or has_other_keys or dense.causal or text < 0:
            return unperturbed()
        self._forward.perturbed_calls += 1
        scale = query.shape[-1] ** -0.5 if dense.scale is None else dense.scale
        grid = None if layout.is_line else (layout.frames, layout.height, layout.width)
        tokens = JointTokens(
            query, dense.key, dense.value, scale, dense.mask, text, layout.text_first, grid
        )
        indices = self._get_head_indices(block, heads, query)
        rows = needed_attention(tokens, indices, settings)
        attention: Tensor | None = None
        if rows == "all":
            attention = unperturbed()
        elif rows == "text":
            attention = attend_rows(dense, tokens.text_range)
        return soft_perturbation(attention, tokens, indices, settings)

    def _get_head_indices(
        self, block: Block, heads: tuple[int, ...], query: Tensor
    ) -> Tensor | None:
        """Return head indices as a tensor that is copied to the device once, or None for all heads."""
        if len(heads) == query.shape[2]:
            return None
        key = (block, query.device)
        if key not in self._head_indices:
            self._head_indices[key] = torch.tensor(heads, device=query.device)
        return self._head_indices[key]

    def forget(self) -> None:
        """Free the tensors of the latest run."""
        self._run.free_tensors()
        self._forward = GuidedForward()

    def report(self) -> dict[str, Any]:
        """Return the settings, and the counts and seconds of the latest run."""
        run = self._run
        return {
            **dataclasses.asdict(self.settings),
            "heads": self.heads.to_spec(),
            "forwards": run.forwards,
            "shared_blocks": run.shared_blocks,
            "blocks": len(self.heads.model.ordered_blocks()),
            "seconds": run.timer.seconds(),
        }


def attend_rows(dense: DenseCall, rows: slice) -> Tensor:
    """Compute dense attention for some of the queries."""
    mask = dense.mask
    if mask is not None and mask.dim() >= 2 and mask.shape[-2] > 1:
        mask = mask[..., rows, :]
    return dataclasses.replace(dense, query=dense.query[:, rows], mask=mask)()
