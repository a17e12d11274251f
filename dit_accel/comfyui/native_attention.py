"""Attention inside ComfyUI's own models, without ComfyUI: an override of one attention call.

ComfyUI calls ``override(func, q, k, v, heads, mask=..., transformer_options=..., ...)`` for self- and cross-attention
of a model, where ``func`` is the attention that would run. `ModelCall` is made anew for every call of the
model, so nothing about where we are outlives it; `SparseOverride` keeps what a run learns.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor

from dit_accel.comfyui.override import Attention, OverrideCall
from dit_accel_pipelines import TokenLayout

KEY = "optimized_attention_override"
UNKNOWN = (
    1 << 20
)  # layers of a model, before its first call is over: a layer counted from the last is none yet
CLOSE = 1e-5  # sigmas are float32 in ComfyUI, and computed again from shares of the steps
BRANCHES = ("cond", "uncond")
PICTURE_FIRST = (
    "HunyuanVideo",
    "HiDreamImageTransformer2DModel",
    "AsymmDiTJoint",  # Mochi
)  # models of ComfyUI that put the text behind the picture; the others put it before


@dataclass(frozen=True)
class ModelStep:
    """What a model call says of itself.

    Attributes:
        sigma: of this step.
        step, num_steps: by the sigmas of the whole run; None: unknown.
        branch: ``"cond"``, ``"uncond"``, or both with ``+``.
        stream: what its state belongs to: its conditions, its context window, and how many calls of the same
            came before at this sigma.
        cells: frames, height and width of the latent.
        text_tokens: of its conditions, whether or not the picture attends to them in the same call.
        text_first: where they are, if it does.
    """

    sigma: float
    step: int
    num_steps: int | None
    branch: str
    stream: tuple[Any, ...]
    cells: tuple[int, int, int]
    text_tokens: int = 0
    text_first: bool = True

    @property
    def least_tokens(self) -> int:
        """Fewer are not the picture's: no model merges more than 2 x 2 cells."""
        frames, height, width = self.cells
        return frames * (height // 2) * (width // 2)

    def layout(self, options: Mapping[str, Any], tokens: int) -> TokenLayout | None:
        """Where the visual tokens are: the grid that makes their number, alone or with the text; None if none
        does.
        """
        part = options.get("img_slice")
        texts = (0, self.text_tokens) if part is None else (int(part[0]),)
        frames, height, width = self.cells
        told = options.get("grid_sizes")
        grids = [tuple(int(n) for n in told)] if told is not None and len(told) == 3 else []
        grids += [(frames, -(-height // side), -(-width // side)) for side in (1, 2)]
        for text, grid in product(texts, grids):
            if math.prod(grid) == tokens - text:
                first = part is not None or self.text_first
                return TokenLayout(grid[0], grid[1], grid[2], text, text_first=first)
        return None


def where(
    x: Tensor,
    sigma: Tensor,
    options: Mapping[str, Any],
    seen: Counter[Any],
    context: Tensor | None = None,
    model: str = "",
) -> ModelStep:
    """A model call from its latent ``[B, C, (T,) H, W]``, ComfyUI's ``transformer_options``, its conditions
    ``[B, T, C]`` and the class name of its transformer; ``seen`` counts calls at one sigma.
    """
    now = float(sigma.max())  # the one wait for the device
    window = options.get("context_window")
    frames = tuple(getattr(window, "index_list", ()) or ())
    same = (*map(str, options.get("uuids") or options.get("cond_or_uncond") or ()), frames)
    for old in [key for key in seen if key[0] != now]:
        del seen[old]
    seen[now, same] += 1
    every = options.get("sample_sigmas")
    step, steps = 0, None
    if every is not None and len(every) > 1:
        step = int((every[:-1].cpu().float() - now).abs().argmin())
        steps = len(every) - 1
    parts = [BRANCHES[i] for i in options.get("cond_or_uncond") or () if i in (0, 1)]
    frames_rows_columns = (1, *x.shape[2:])[-3:]
    cells = (frames_rows_columns[0], frames_rows_columns[1], frames_rows_columns[2])
    return ModelStep(
        now,
        step,
        steps,
        "+".join(parts) or "cond",
        (same, seen[now, same]),
        cells,
        context.shape[1] if context is not None and context.dim() == 3 else 0,
        model not in PICTURE_FIRST,
    )


@dataclass
class ModelCall:
    """One call of a model: counts its self-attentions over the picture.

    Attributes:
        previous: the override that was there before; it gets every call that is not taken.
    """

    where: ModelStep
    previous: Attention | None
    layer: int = -1

    def entered(self, asked: OverrideCall) -> str | None:
        """Why an attention is none of the picture's self-attentions; else None, and it is counted."""
        queries, keys = asked.counts()
        if keys != queries:
            return "cross attention"
        if not asked.query.shape == asked.key.shape == asked.value.shape:
            return "queries, keys and values of different shapes"
        if queries < self.where.least_tokens:
            return "fewer tokens than the picture has"
        self.layer += 1
        return None


def with_override(
    options: Mapping[str, Any], make: Callable[[Attention | None], Attention]
) -> dict[str, Any]:
    """``transformer_options`` for one model call, its attention led by what ``make`` makes of the one before."""
    return {**options, KEY: make(options.get(KEY))}


def called_at(
    executor: Any, arguments: Sequence[Any], named: Mapping[str, Any], seen: Counter[Any]
) -> ModelStep:
    """`where`, from a call of a wrapper of ``apply_model``."""
    context = arguments[3] if len(arguments) > 3 else named.get("c_crossattn")
    model = getattr(getattr(executor, "class_obj", None), "diffusion_model", None)
    options = called_with(arguments, named)
    return where(arguments[0], arguments[1], options, seen, context, type(model).__name__)


def called_with(arguments: Sequence[Any], named: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ``transformer_options`` of ``apply_model``: its sixth argument, or by name."""
    found: Any = named.get("transformer_options", arguments[5] if len(arguments) > 5 else None)
    return found or {}


def replaced(
    arguments: Sequence[Any], named: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of ``apply_model`` with other ``transformer_options``."""
    if len(arguments) > 5:
        return (*arguments[:5], options, *arguments[6:]), dict(named)
    return tuple(arguments), {**named, "transformer_options": options}
