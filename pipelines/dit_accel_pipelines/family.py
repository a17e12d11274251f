"""What a model family is, and the registry of the families we declare."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class TokenSubset:
    """Samples of a batch that have equally many tokens, and where those lie.

    Attributes:
        samples: int64 ``[b]``; None: all.
        places: int64 ``[b, n]``; ``[n]`` where they are the same for all samples.
    """

    samples: Tensor | None
    places: Tensor

    def of(self, tensor: Tensor) -> Tensor:
        """Their tokens ``[b, n, ...]`` out of ``[B, S, ...]``."""
        return tensor[self._index(tensor)]

    def put(self, tensor: Tensor, values: Tensor) -> None:
        """The inverse, in place."""
        tensor[self._index(tensor)] = values

    def _index(self, tensor: Tensor) -> tuple[slice | Tensor, Tensor]:
        if self.samples is None:
            return slice(None), self.places
        return self.samples[:, None], self.places


@dataclass(frozen=True)
class TokenLayout:
    """Where the visual tokens of an attention call are.

    ``frames * height * width`` visual tokens in raster order, with ``text_tokens`` before (``text_first``) or after
    them.

    Attributes:
        text_tokens: of text, and of whatever else is no part of the grid.
        parts: where the tokens lie otherwise, or some are padding, which is in no part: the tokens of each
            sample in the order said above; ``text_tokens`` counts the padding too. Empty: they lie so.
    """

    frames: int
    height: int
    width: int
    text_tokens: int = 0
    text_first: bool = False
    parts: tuple[TokenSubset, ...] = field(default=(), compare=False)

    @property
    def visual_tokens(self) -> int:
        return self.frames * self.height * self.width

    @property
    def is_line(self) -> bool:
        """Nothing is known of where the visual tokens are."""
        return self.frames == self.height == 1 < self.width


@dataclass(frozen=True)
class SizeRule:
    """Which sizes a model takes, and how many pixels make a token.

    Attributes:
        multiple: divides height and width: a token is a square of as many pixels.
        frame_step: the number of frames is ``frame_step * k + first_frames``; 1: any.
        depth: latent frames in a token.
        first_frames: frames in the first latent frame, where it holds fewer than the others; 0: it does not.
    """

    multiple: int
    frame_step: int
    depth: int = 1
    first_frames: int = 1

    def complaint(self, height: int, width: int, frames: int) -> str | None:
        """One line that says what is wrong with a size and what would do, or None."""
        for name, value in (("height", height), ("width", width)):
            if value < self.multiple or value % self.multiple:
                below = max(self.multiple, value // self.multiple * self.multiple)
                near = f"use {below} or {below + self.multiple}"
                return f"{name} {value} is not divisible by {self.multiple}: {near}"
        step, first = self.frame_step, self.first_frames
        if frames < 1 or (frames - first) % step:
            below = max(0, frames - first) // step * step + first
            rule = f"{step}k+{first}" if first else f"a multiple of {step}"
            return f"frames {frames} is not {rule}: use {below or step} or {(below or step) + step}"
        return None

    def grid(self, frames: int, height: int, width: int) -> TokenLayout:
        """The visual tokens of a video in pixels; a last token that is not full counts."""
        latents = (frames - self.first_frames) // self.frame_step + self.first_frames
        return TokenLayout(
            -(-latents // self.depth), height // self.multiple, width // self.multiple
        )


STRETCHES = (
    "it makes a long video stretch by stretch, each a run of its own: a report is of the last"
)
MODULAR = "diffusers has modular pipelines of it only: use dit_accel.enable_sparse_attention(pipe)"

Config = Mapping[str, Any]
COMPONENTS = ("transformer", "transformer_2", "unconditional_transformer")
"""Names that pipelines give to their transformers: experts of different steps, or one for each prediction."""


@dataclass(frozen=True)
class AttentionShape:
    """The self-attention of a transformer: number of layers, heads and channels of a head."""

    layers: int
    heads: int
    head_dim: int


def standard_heads(transformer: Config) -> tuple[int, int]:
    """Number of heads and head_dim, where the config says them by diffusers' usual names."""
    return transformer["num_attention_heads"], transformer["attention_head_dim"]


def none(transformer: Config) -> int:
    """Of a model without text among the tokens, or without a second attention in a block."""
    return 0


def latent_scale(vae: Config) -> int:
    """Pixels along a side of a latent, of a VAE that halves at each level but the last."""
    return int(2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1))


def image_size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Of a model of pictures whose tokens are squares of latents."""
    return SizeRule(latent_scale(vae) * transformer["patch_size"], 1)


@dataclass(frozen=True)
class Postprocess:
    """What pipelines do to the predictions, besides classifier-free guidance.

    Attributes:
        words: after "the pipeline ...".
        switch: the call's argument, or the pipeline's config, that turns it on.
        default: whether pipelines without that do it.
    """

    words: str
    switch: str = ""
    default: bool = True


@dataclass(frozen=True)
class Family:
    """Everything the rest of the project knows about a kind of transformer.

    Attributes:
        name: short name for tables and reports.
        transformers: exact class names of the transformers.
        attention: pattern over module names; the modules it matches fully attend over the visual
            tokens.
        blocks: name of each block list with such modules, in the order of execution, to the key of the
            config that holds its length, or a list of that length.
        layout: from the forward call's arguments (by name) and the transformer's config to the
            TokenLayout; None where the tokens are no grid: calls then stay dense in a joint family, and are a
            line of visual tokens in the others.
        size_rule: from the transformer's and the VAE's config (plain JSON) to the sizes that work.
        cfg: how the pipeline runs classifier-free guidance; ``"batched"`` is ``[uncond, cond]``.
        text_tokens: from the transformer's config to the number of text tokens among the others, as the
            pipeline pads them by default.
        text_first: they come first.
        heads: from the transformer's config to number of heads and head_dim.
        batched: names of the forward's arguments that have the batch first.
        joint: text tokens take part in the attention.
        crops_text: calls differ in how many text tokens they have: those beyond the grid.
        more_attention: from the transformer's config to the number of such modules beyond one a block.
        output: what the pipelines make.
        picture_pipelines: class names of those that make pictures, where the others make videos.
        guidance: perturbed guidance knows how its forward is called.
        postprocess: what its pipelines do with classifier-free guidance that changes what is added to predictions.
        unshared: why its pipelines do not run under diffusers' context parallelism, where diffusers plans it.
        tested: ``"tested"`` where sparse attention went through the whole family matrix.
        remark: what does not become sparse, for the table of families.
    """

    name: str
    transformers: tuple[str, ...]
    attention: str
    blocks: Mapping[str, str]
    layout: Callable[[Mapping[str, Any], Config], TokenLayout | None]
    size_rule: Callable[[Config, Config], SizeRule]
    cfg: Literal["separate", "batched", "embedded"]
    text_tokens: Callable[[Config], int] = none
    text_first: bool = False
    heads: Callable[[Config], tuple[int, int]] = standard_heads
    batched: tuple[str, ...] = ("hidden_states", "encoder_hidden_states", "timestep")
    joint: bool = False
    crops_text: bool = False
    more_attention: Callable[[Config], int] = none
    output: Literal["video", "image"] = "video"
    image_pipelines: tuple[str, ...] = ()
    guidance: bool = True
    postprocess: tuple[Postprocess, ...] = ()
    unshared: str = ""
    tested: Literal["tested", "declared"] = "tested"
    remark: str = ""

    def block_counts(self, transformer: Config) -> dict[str, int]:
        """Number of blocks of each list, from the transformer's config."""
        counts = {name: transformer[key] for name, key in self.blocks.items()}
        return {name: c if isinstance(c, int) else len(c) for name, c in counts.items()}

    def attention_shape(self, transformer: Config) -> AttentionShape:
        """From the transformer's config."""
        layers = sum(self.block_counts(transformer).values()) + self.more_attention(transformer)
        return AttentionShape(layers, *self.heads(transformer))

    def video_layout(
        self, frames: int, height: int, width: int, transformer: Config, vae: Config
    ) -> TokenLayout:
        """Tokens of a video in pixels, with the pipeline's default text, from the configs of transformer and
        VAE.
        """
        grid = self.size_rule(transformer, vae).grid(frames, height, width)
        return replace(grid, text_tokens=self.text_tokens(transformer), text_first=self.text_first)

    def attention_modules(self, transformer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Name and module of each self-attention over visual tokens, in the order of execution."""
        pattern = re.compile(self.attention)
        for stack in self.blocks:
            for name, module in transformer.get_submodule(stack).named_modules(prefix=stack):
                if pattern.fullmatch(name):
                    yield name, module


LINEAR = "its self-attention is linear: there is no attention map to make sparse"
REFUSED = {
    "SanaTransformer2DModel": LINEAR,
    "SanaVideoTransformer3DModel": LINEAR,
}


class UnknownFamily(LookupError):
    """No declared family has this transformer."""

    def __init__(self, name: str) -> None:
        if name in REFUSED:
            super().__init__(f"{name} is not supported: {REFUSED[name]}")
            return
        known = ", ".join(t for family in families() for t in family.transformers)
        super().__init__(
            f"no family declares {name}; declared are {known}; add one with register_family"
        )


def patches(hidden_states: Tensor, patch: tuple[int, int, int]) -> tuple[int, int, int]:
    """The grid of the last three dimensions ``(F, H, W)`` of latents in patches; pictures ``[B, C, H, W]`` have one
    frame.
    """
    frames, height, width = hidden_states.shape[-3:]
    frames = frames if hidden_states.dim() == 5 else 1
    return frames // patch[0], height // patch[1], width // patch[2]


def latent_grid(arguments: Mapping[str, Any], config: Config) -> tuple[int, int, int]:
    """`patches` of the argument hidden_states, of the size in the transformer's config."""
    patch = config["patch_size"]
    if isinstance(patch, int):
        patch = (config.get("patch_size_t") or 1, patch, patch)
    return patches(arguments["hidden_states"], patch)


def in_parts(layout: TokenLayout, places: Sequence[Tensor]) -> TokenLayout:
    """A layout whose tokens lie elsewhere: for each sample their places (int64), in the layout's order."""
    lengths = [len(place) for place in places]
    parts = []
    for length in dict.fromkeys(lengths):
        samples = [i for i, other in enumerate(lengths) if other == length]
        where = torch.stack([places[i] for i in samples])
        parts.append(TokenSubset(torch.tensor(samples, device=where.device), where))
    return replace(layout, parts=tuple(parts))


def valid_text(layout: TokenLayout, mask: Tensor) -> TokenLayout:
    """A layout without the text tokens that a mask ``[B, T]`` leaves out (read from the device)."""
    places = torch.arange(layout.visual_tokens + layout.text_tokens, device=mask.device)
    if layout.text_first:
        text, visual = places[: layout.text_tokens], places[layout.text_tokens :]
        found = [torch.cat([text[row], visual]) for row in mask.bool()]
    else:
        visual, text = places[: layout.visual_tokens], places[layout.visual_tokens :]
        found = [torch.cat([visual, text[row]]) for row in mask.bool()]
    return in_parts(layout, found)


_REGISTRY: dict[str, Family] = {}


def register_family(family: Family) -> None:
    """Add a family; a later one replaces an earlier one of the same name."""
    _REGISTRY[family.name] = family


def families() -> tuple[Family, ...]:
    """All registered families."""
    return tuple(_REGISTRY.values())


def find_family(transformer: nn.Module | str) -> Family:
    """The family of a transformer, or of a transformer class named by a string; base classes count.

    Raises:
        UnknownFamily: if no family declares it.
    """
    if isinstance(transformer, str):
        names = [transformer]
    else:
        names = [c.__name__ for c in type(transformer).__mro__]
    for name in names:
        for family in families():
            if name in family.transformers:
                return family
    raise UnknownFamily(names[0])
