"""What a model family is, and the registry of the families we declare."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn


@dataclass(frozen=True)
class TokenLayout:
    """Where the visual tokens of an attention call are.

    ``frames * height * width`` visual tokens in raster order, with ``text_tokens`` before
    (``text_first``) or after them. ``valid_tokens`` has one number per sample where text is padded,
    else None: all count.
    """

    frames: int
    height: int
    width: int
    text_tokens: int = 0
    text_first: bool = False
    valid_tokens: tuple[int, ...] | None = None

    @property
    def visual_tokens(self) -> int:
        return self.frames * self.height * self.width


@dataclass(frozen=True)
class SizeRule:
    """Which sizes a model takes: height and width divisible by ``multiple``, frames ``frame_step *
    k + 1``.
    """

    multiple: int
    frame_step: int

    def complaint(self, height: int, width: int, frames: int) -> str | None:
        """One line that says what is wrong with a size and what would do, or None."""
        for name, value in (("height", height), ("width", width)):
            if value < self.multiple or value % self.multiple:
                below = max(self.multiple, value // self.multiple * self.multiple)
                near = f"use {below} or {below + self.multiple}"
                return f"{name} {value} is not divisible by {self.multiple}: {near}"
        if frames < 1 or (frames - 1) % self.frame_step:
            below = max(0, frames - 1) // self.frame_step * self.frame_step + 1
            near = f"use {below} or {below + self.frame_step}"
            return f"frames {frames} is not {self.frame_step}k+1: {near}"
        return None


Config = Mapping[str, Any]


@dataclass(frozen=True)
class AttentionShape:
    """The self-attention of a transformer: number of layers, heads and channels of a head."""

    layers: int
    heads: int
    head_dim: int


def latent_scale(vae: Config) -> int:
    """Pixels along a side of a latent, of a VAE that halves at each level but the last."""
    return int(2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1))


@dataclass(frozen=True)
class Family:
    """Everything the rest of the project knows about a kind of transformer.

    Attributes:
        name: short name for tables and reports.
        transformers: exact class names of the transformers.
        attention: pattern over module names; the modules it matches fully attend over the visual
        tokens.
        blocks: name of each block list with such modules, in the order of execution, to the key of its
            length in the config.
        layout: from the forward call's arguments (by name) and the transformer's config to the
        TokenLayout.
        size_rule: from the transformer's and the VAE's config (plain JSON) to the sizes that work.
        video_layout: the TokenLayout of a video of (frames, height, width) in pixels, from the configs of
            transformer and VAE.
        cfg: how the pipeline runs classifier-free guidance; ``"one batch"`` is ``[uncond, cond]``.
        batched: names of the forward's arguments that have the batch first.
        joint: text tokens take part in the attention.
        crops_text: each sample has its own attention call, with as many text tokens as are valid.
        output: what the pipeline makes.
        tested: ``"tested"`` where sparse attention went through the whole family matrix.
    """

    name: str
    transformers: tuple[str, ...]
    attention: str
    blocks: Mapping[str, str]
    layout: Callable[[Mapping[str, Any], Config], TokenLayout]
    size_rule: Callable[[Config, Config], SizeRule]
    video_layout: Callable[[int, int, int, Config, Config], TokenLayout]
    cfg: Literal["two calls", "one batch", "embedded"]
    batched: tuple[str, ...] = ("hidden_states", "encoder_hidden_states", "timestep")
    joint: bool = False
    crops_text: bool = False
    output: Literal["video", "image"] = "video"
    tested: Literal["tested", "declared"] = "tested"

    def block_counts(self, transformer: Config) -> dict[str, int]:
        """Number of blocks of each list, from the transformer's config."""
        return {name: transformer[key] for name, key in self.blocks.items()}

    def attention_shape(self, transformer: Config) -> AttentionShape:
        """From the transformer's config."""
        return AttentionShape(
            sum(self.block_counts(transformer).values()),
            transformer["num_attention_heads"],
            transformer["attention_head_dim"],
        )

    def attention_modules(self, transformer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Name and module of each self-attention over visual tokens, in the order of execution."""
        pattern = re.compile(self.attention)
        for name, module in transformer.named_modules():
            if pattern.fullmatch(name):
                yield name, module


class UnknownFamily(LookupError):
    """No declared family has this transformer."""

    def __init__(self, name: str) -> None:
        known = ", ".join(t for family in families() for t in family.transformers)
        super().__init__(
            f"no family declares {name}; declared are {known}; add one with register_family"
        )


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
