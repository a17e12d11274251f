"""Check image and video sizes against the patches of a model."""

from __future__ import annotations

from dataclasses import dataclass

from dit_accel_pipelines.token_layout import Config, TokenLayout


@dataclass(frozen=True)
class SizeRule:
    """Sizes that a model accepts, and the number of pixels in a token.

    Attributes:
        multiple: Height and width must be multiples of it; a token covers a square of this side, in pixels.
        frame_step: The number of frames must be ``frame_step * k + first_frames``; 1 accepts any number.
        depth: Number of latent frames in a token.
        first_frames: Number of frames in the first latent frame if it holds fewer than the others; 0 if not.

    Example:
        >>> SizeRule(multiple=16, frame_step=4).find_error(height=480, width=832, frames=80)
        'frames 80 is not 4k+1: use 77 or 81'
    """

    multiple: int
    frame_step: int
    depth: int = 1
    first_frames: int = 1

    def find_error(self, height: int, width: int, frames: int) -> str | None:
        """Return one line on why a size is invalid and which sizes are valid, or None for a valid size."""
        for name, value in (("height", height), ("width", width)):
            if value < self.multiple or value % self.multiple:
                below = max(self.multiple, value // self.multiple * self.multiple)
                nearest = f"use {below} or {below + self.multiple}"
                return f"{name} {value} is not divisible by {self.multiple}: {nearest}"
        step, first = self.frame_step, self.first_frames
        if frames < 1 or (frames - first) % step:
            below = max(0, frames - first) // step * step + first
            rule = f"{step}k+{first}" if first else f"a multiple of {step}"
            return f"frames {frames} is not {rule}: use {below or step} or {(below or step) + step}"
        return None

    def grid(self, frames: int, height: int, width: int) -> TokenLayout:
        """Return the grid of visual tokens of a video in pixels; a partly filled last frame counts."""
        latents = (frames - self.first_frames) // self.frame_step + self.first_frames
        return TokenLayout(
            -(-latents // self.depth), height // self.multiple, width // self.multiple
        )


def latent_scale(vae: Config) -> int:
    """Return the side of a latent in pixels, for a VAE that halves the size at every level but the last."""
    return int(2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1))


def image_size_rule(transformer: Config, vae: Config) -> SizeRule:
    """Return the size rule of an image model whose tokens are square patches of latents."""
    return SizeRule(latent_scale(vae) * transformer["patch_size"], 1)
