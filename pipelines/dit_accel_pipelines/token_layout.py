"""Describe where the visual tokens and the text tokens of an attention call are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

Config = Mapping[str, Any]
"""Config of a diffusers model, as plain JSON."""


@dataclass(frozen=True, eq=False)
class TokenSubset:
    """Samples of a batch that have the same number of tokens, and the positions of these tokens.

    Attributes:
        sample_index: Samples in the subset, int64 ``[b]``; None means all samples.
        token_index: Positions of their tokens, int64 ``[b, n]``, or ``[n]`` if all samples share them.
    """

    sample_index: Tensor | None
    token_index: Tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tokens of the subset, ``[b, n, ...]``, from a tensor ``[B, S, ...]``."""
        return tensor[self._index()]

    def scatter(self, tensor: Tensor, values: Tensor) -> None:
        """Write values ``[b, n, ...]`` to the tokens of the subset in a tensor ``[B, S, ...]``, in place."""
        tensor[self._index()] = values

    def _index(self) -> tuple[slice | Tensor, Tensor]:
        if self.sample_index is None:
            return slice(None), self.token_index
        return self.sample_index[:, None], self.token_index


@dataclass(frozen=True)
class TokenLayout:
    """Order of the tokens in an attention call.

    ``frames * height * width`` visual tokens are in raster order. The text tokens are before them if
    ``text_first``, and after them otherwise.

    Attributes:
        frames, height, width: Size of the grid of visual tokens.
        text_tokens: Number of tokens outside the grid: text, and others such as earlier frames.
        text_first: Text tokens come before the visual tokens.
        subsets: Positions of each sample's tokens if they are in another order or if some are padding. Each
            subset lists tokens in the order above, without padding. ``text_tokens`` then counts padding, too.
            Empty means that all tokens are in the order above.
    """

    frames: int
    height: int
    width: int
    text_tokens: int = 0
    text_first: bool = False
    subsets: tuple[TokenSubset, ...] = field(default=(), compare=False)

    @property
    def visual_tokens(self) -> int:
        """Return the number of visual tokens."""
        return self.frames * self.height * self.width

    @property
    def is_line(self) -> bool:
        """Return True if the visual tokens form one line, because their grid is unknown."""
        return self.frames == self.height == 1 < self.width

    def for_batch(self, batch: int) -> TokenLayout | None:
        """Return the layout for a batch size, because the text of one sample may serve all samples.

        Returns:
            None if the subsets describe another number of samples.
        """
        sizes = [None if s.sample_index is None else len(s.sample_index) for s in self.subsets]
        if None in sizes or not sizes or sum(filter(None, sizes)) == batch:
            return self
        if sizes != [1]:
            return None
        token_index = self.subsets[0].token_index
        shared = token_index[0] if token_index.dim() == 2 else token_index
        return replace(self, subsets=(TokenSubset(None, shared),))


def patch_grid(latents: Tensor, patch: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return how many patches fit in each of the last three dimensions ``(F, H, W)`` of latents.

    Image latents ``[B, C, H, W]`` count as one frame.
    """
    frames, height, width = latents.shape[-3:]
    frames = frames if latents.dim() == 5 else 1
    return frames // patch[0], height // patch[1], width // patch[2]


def latent_grid(arguments: Mapping[str, Any], config: Config) -> tuple[int, int, int]:
    """Return the `patch_grid` of the argument hidden_states, with the patch size of the transformer's config."""
    patch = config["patch_size"]
    if isinstance(patch, int):
        patch = (config.get("patch_size_t") or 1, patch, patch)
    return patch_grid(arguments["hidden_states"], patch)


def latent_layout(arguments: Mapping[str, Any], config: Config) -> TokenLayout:
    """Return the grid of latent patches of hidden_states ``[B, C, F, H, W]`` or ``[B, C, H, W]``, without text."""
    return TokenLayout(*latent_grid(arguments, config))


def split_by_sample(layout: TokenLayout, token_indices: Sequence[Tensor]) -> TokenLayout:
    """Return a layout with a subset for each number of tokens that samples have.

    Args:
        layout: Layout of the grid and of the text.
        token_indices: Positions of the tokens of each sample, int64 ``[n]``, in the order of the layout.
    """
    lengths = [len(token_index) for token_index in token_indices]
    subsets = []
    for length in dict.fromkeys(lengths):
        samples = [i for i, other in enumerate(lengths) if other == length]
        token_index = torch.stack([token_indices[i] for i in samples])
        sample_index = torch.tensor(samples, device=token_index.device)
        subsets.append(TokenSubset(sample_index, token_index))
    return replace(layout, subsets=tuple(subsets))


def drop_padded_text(layout: TokenLayout, mask: Tensor) -> TokenLayout:
    """Return a layout without the text tokens for which a mask ``[B, T]`` is zero.

    The mask is read from the device.
    """
    tokens = torch.arange(layout.visual_tokens + layout.text_tokens, device=mask.device)
    if layout.text_first:
        text, visual = tokens[: layout.text_tokens], tokens[layout.text_tokens :]
        return split_by_sample(layout, [torch.cat([text[row], visual]) for row in mask.bool()])
    visual, text = tokens[: layout.visual_tokens], tokens[layout.visual_tokens :]
    return split_by_sample(layout, [torch.cat([visual, text[row]]) for row in mask.bool()])
