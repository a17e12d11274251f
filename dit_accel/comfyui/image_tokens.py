"""Tokens of one call of a ComfyUI model: the grid of its latent, its text, and other streams such as sound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor

from dit_accel_pipelines import TokenLayout

TEXT_FIRST = {
    "AsymmDiTJoint": False,  # Mochi
    "HiDreamImageTransformer2DModel": False,
    "Chroma": True,
    "ChromaRadiance": True,
    "CogVideoXTransformer3DModel": True,
    "Flux": True,
    "HunyuanVideo": True,
    "MMDiT": True,
    "NextDiT": True,
    "OmniGen2Transformer2DModel": True,
    "OpenAISignatureMMDITWrapper": True,
    "QwenImageTransformer2DModel": True,
    "SingleStreamDiT": True,  # Krea 2
}
"""True for a class of models that puts text tokens before image tokens in joint attention, by its name.

It is used where neither ``img_slice`` nor the model's blocks tell the order.
"""

REFERENCES_FIRST = ("NextDiT",)
"""Classes of models that put reference images before the image, by name. The others put them behind it."""


@dataclass(frozen=True)
class TokenGrid:
    """Grid of the image among the tokens of an attention call.

    Attributes:
        layout: Grid of the image, after the trailing tokens were moved to the front. All other tokens count as text.
        trailing: Number of tokens behind the image, such as reference images or padding.
    """

    layout: TokenLayout
    trailing: int = 0

    def move_to_front(self, tensor: Tensor) -> Tensor:
        """Return a tensor ``[B, S, H, D]`` with the trailing tokens before all others."""
        return tensor.roll(self.trailing, 1) if self.trailing else tensor

    def move_back(self, tensor: Tensor) -> Tensor:
        """Return a tensor ``[B, S, H, D]`` with the trailing tokens behind all others again."""
        return tensor.roll(-self.trailing, 1) if self.trailing else tensor

    def without_grid(self) -> TokenGrid:
        """Return the tokens without a grid, so that trailing tokens count as visual tokens and stay in place."""
        if not self.trailing:
            return self
        visual = self.layout.visual_tokens + self.trailing
        text = self.layout.text_tokens - self.trailing
        return TokenGrid(TokenLayout(1, 1, visual, text, text_first=True))


@dataclass(frozen=True)
class ImageTokens:
    """Tokens of one model call.

    Attributes:
        latent_size: Frames, height and width of the latent, or None if its shape is none of an image or a video.
        text_tokens: Number of text tokens in its conditions, even if the image does not attend to them.
        text_first: True if text tokens come before image tokens in joint attention, None if the order is unknown.
        packed: Layout of the one sequence into which the model packs all its streams, or None.
        other_streams: Numbers of tokens that the latent's other streams can have.
        references: Number of tokens of reference images.
        references_first: True if reference images come before the image.
        multiple: The model pads its text and its image to multiples of this number.
        patch: Frames, height and width of a token in the latent, or None if they are unknown.
    """

    latent_size: tuple[int, int, int] | None
    text_tokens: int = 0
    text_first: bool | None = None
    packed: TokenLayout | None = None
    other_streams: frozenset[int] = frozenset()
    references: int = 0
    references_first: bool = False
    multiple: int = 1
    patch: tuple[int, int, int] | None = None

    def find_refusal(self, options: Mapping[str, Any], tokens: int) -> str | None:
        """Return why a self-attention is none over the image, or None if it is one.

        Args:
            options: ComfyUI's ``transformer_options``.
            tokens: Number of tokens of the attention call.
        """
        if self.latent_size is None:
            return "the latent is neither an image nor a video"
        if self._find_exact(options, tokens) is not None:
            return None
        if tokens in self.other_streams:
            return "attention over another stream than the image"
        frames, height, width = self.latent_size
        # Without a known patch, no model merges more than 2 x 2 latent pixels.
        smallest = min(
            frames * (height // 2) * (width // 2), *map(math.prod, self._find_grids(options))
        )
        if tokens < smallest:
            return "fewer tokens than the image has"
        return None

    def find_grid(self, options: Mapping[str, Any], tokens: int) -> TokenGrid | None:
        """Return the grid that fits a number of tokens, with or without text, references and padding.

        Args:
            options: ComfyUI's ``transformer_options``.
            tokens: Number of tokens of an attention call.

        Returns:
            The grid, or None if none fits, or if the order of text and image is unknown.
        """
        if self.latent_size is None:
            return None
        found = self._find_exact(options, tokens)
        if found is not None or not self.text_first:
            return found
        # Everything before the image is text: other encoders add tokens that the conditions do not count.
        if self.references and not self.references_first:
            return None
        grid = self._find_grids(options)[0]
        padding = -math.prod(grid) % self.multiple
        text = tokens - math.prod(grid)
        needed = padding + self.text_tokens + self.references
        return (
            TokenGrid(TokenLayout(*grid, text, text_first=True), padding)
            if text >= needed
            else None
        )

    def _find_exact(self, options: Mapping[str, Any], tokens: int) -> TokenGrid | None:
        """Return the grid whose tokens, with those that the conditions count, have a number."""
        packed = self.packed
        if packed is not None and packed.visual_tokens + packed.text_tokens == tokens:
            return TokenGrid(packed)
        for (text, text_first), grid in product(
            self._find_texts(options, tokens), self._find_grids(options)
        ):
            for trailing in self._find_trailing(math.prod(grid), text_first):
                if math.prod(grid) + trailing == tokens - text:
                    outside = text + trailing
                    layout = TokenLayout(*grid, outside, text_first=text_first or trailing > 0)
                    return TokenGrid(layout, trailing)
        return None

    def _find_texts(self, options: Mapping[str, Any], tokens: int) -> list[tuple[int, bool]]:
        """Return the possible numbers of text tokens, and whether they come first."""
        image_slice = options.get("img_slice")
        if image_slice is not None:
            start, end = map(int, image_slice)
            return [(start, True)] if start else [(tokens - end, False)]
        if self.text_first is None:
            return [(0, False)]
        text = -(-self.text_tokens // self.multiple) * self.multiple
        return [(0, self.text_first), (text, self.text_first)]

    def _find_trailing(self, image: int, text_first: bool) -> list[int]:
        """Return the possible numbers of tokens behind an image of some tokens."""
        behind = 0 if self.references_first else self.references
        return [0, -image % self.multiple, behind] if text_first else [0]

    def _find_grids(self, options: Mapping[str, Any]) -> list[tuple[int, int, int]]:
        """Return the possible grids: the one that a call names, that of the model's patch, and those of its latent."""
        assert self.latent_size is not None
        frames, height, width = self.latent_size
        patches = [*filter(None, [self.patch]), (1, 2, 2), (1, 1, 1)]
        grids = [(-(-frames // t), -(-height // h), -(-width // w)) for t, h, w in patches]
        named = options.get("grid_sizes")
        if named is not None and len(named) == 3:
            grids.insert(0, (int(named[0]), int(named[1]), int(named[2])))
        return grids


def read_tokens(
    latent: Tensor,
    context: Tensor | None = None,
    model: Any = None,
    named: Mapping[str, Any] | None = None,
) -> ImageTokens:
    """Read the tokens of a model call from its arguments.

    Args:
        latent: ``[B, C, (T,) H, W]``, or several streams packed as ``[B, 1, N]``.
        context: Text conditions ``[B, T, C]``, or None.
        model: The transformer.
        named: Arguments by name. ``latent_shapes`` has the shape of each packed stream, the image or video first.
    """
    named = named or {}
    shapes = [tuple(latent.shape)]
    if latent.dim() == 3:
        shapes = [tuple(shape) for shape in named.get("latent_shapes") or shapes]
    size = read_size(shapes[0])
    return ImageTokens(
        latent_size=size,
        text_tokens=context.shape[1] if context is not None and context.dim() == 3 else 0,
        text_first=find_text_order(model),
        packed=None if size is None else read_packed(size, named.get("minimax_payload")),
        other_streams=frozenset(
            count
            for shape in shapes[1:]
            for count in (math.prod(shape[2:]), math.prod(shape[2:-1]))
        ),
        references=count_references(named.get("ref_latents") or ()),
        references_first=type(model).__name__ in REFERENCES_FIRST,
        multiple=getattr(model, "pad_tokens_multiple", None) or 1,
        patch=read_patch(model),
    )


def read_patch(model: Any) -> tuple[int, int, int] | None:
    """Return the frames, height and width of a transformer's patch, or None if it has no such attribute."""
    patch = getattr(model, "patch_size", None)
    sides = [patch] * 2 if isinstance(patch, int) else list(patch or ())
    if len(sides) not in (2, 3) or not all(isinstance(side, int) and side > 0 for side in sides):
        return None
    frames = sides[0] if len(sides) == 3 else getattr(model, "patch_size_t", None) or 1
    return frames, sides[-2], sides[-1]


def count_references(latents: Sequence[Tensor]) -> int:
    """Return the tokens of reference images ``[B, C, (T,) H, W]`` in patches of 2 x 2."""
    sizes = [read_size(tuple(latent.shape)) for latent in latents]
    return sum(t * -(-h // 2) * -(-w // 2) for t, h, w in filter(None, sizes))


def read_size(shape: Sequence[int]) -> tuple[int, int, int] | None:
    """Return frames, height and width of a latent ``[B, C, (T,) H, W]``, or None for another shape."""
    if len(shape) not in (4, 5):
        return None
    frames = shape[2] if len(shape) == 5 else 1
    return frames, shape[-2], shape[-1]


def find_text_order(model: Any) -> bool | None:
    """Return True if a transformer puts text tokens before image tokens, None if that is unknown.

    Blocks of Flux's kind had the flag ``flipped_img_txt`` as long as HunyuanVideo put its image first.
    """
    blocks = getattr(model, "double_blocks", None) or ()
    if any(getattr(block, "flipped_img_txt", False) for block in blocks):
        return False
    return TEXT_FIRST.get(type(model).__name__)


def read_packed(size: tuple[int, int, int], payload: Any) -> TokenLayout | None:
    """Return the layout of MiniMax-H3's sequence: text, references, sound, and last the video in 2 x 2 patches.

    Args:
        size: Frames, height and width of the video's latent.
        payload: The argument ``minimax_payload``, with the segments ``(start, stop, kind)`` of the sequence.

    Returns:
        The layout, in which all tokens before the video count as text, or None if no such segments are there.
    """
    segments: Sequence[tuple[int, int, str]] = (
        getattr((payload or {}).get("layout"), "segments", None) or ()
    )
    grid = (size[0], -(-size[1] // 2), -(-size[2] // 2))
    if not segments:
        return None
    start, stop, kind = segments[-1]
    if kind != "video" or stop - start != math.prod(grid):
        return None
    return TokenLayout(*grid, start, text_first=True)
