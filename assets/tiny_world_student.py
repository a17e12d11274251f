"""Define the model with its losses, its optimizers and its batches of encoded clips, for training the transformer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers import transformer_wan
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from dit_accel_assets.world import MOTIONS
from tiny_world_readers import TEXT_TOKENS, TokenReader

# Label of a token whose object moves in a circle.
ORBIT = 1 + MOTIONS.index("moving in a circle")

# Video tokens per step: 16 whole clips at `smoke`, 4 at `study`, 2 at `show`.
BATCH_TOKENS = 5120
LARGEST_BATCH = 64

# The reader sees the states after 4 of 8 blocks.
READ_AFTER = 4

# Weight of the reader's cross entropy against the squared error of the velocity.
READ_WEIGHT = 0.1


class PaddingBias(transformer_wan.WanAttnProcessor):
    """Cross-attention that counts the last text token as often as there are padding tokens.

    WanPipeline pads a prompt with zeros to ``max_sequence_length`` and attends to them. n equal keys are one key
    whose logit is raised by ln n. Therefore training with one padding token and this bias is exact at any padding.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.bias = torch.zeros(1, 1, 1, TEXT_TOKENS, device=device)

    def set_padding(self, tokens: int) -> None:
        """Set the number of padding tokens that the last text token stands for."""
        self.bias[..., -1] = math.log(tokens)

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        return super().__call__(attn, hidden_states, encoder_hidden_states, self.bias, rotary_emb)


def matmul_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    backend: str | None = None,
    parallel_config: None = None,
) -> Tensor:
    """Compute attention of ``[B, S, H, D]`` by plain matrix products.

    In training on CPU in bfloat16, this takes a third of SDPA's time.
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores + attn_mask.to(scores.dtype)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def replace_attention(transformer: WanTransformer3DModel, device: str) -> PaddingBias:
    """Give cross-attention a `PaddingBias`, which is returned; on CPU, use `matmul_attention`."""
    padding = PaddingBias(device)
    for block in transformer.blocks:
        block.attn2.set_processor(padding)
    if device == "cpu":
        transformer_wan.dispatch_attention_fn = matmul_attention
    return padding


class Student(nn.Module):
    """Text encoder and transformer with two losses: flow matching, and `TokenReader` on states half-way."""

    def __init__(self, model: Path) -> None:
        super().__init__()
        self.text_encoder = UMT5EncoderModel.from_pretrained(
            model / "text_encoder", dtype=torch.float32
        )
        self.transformer = WanTransformer3DModel.from_pretrained(
            model / "transformer", dtype=torch.float32
        )
        self.reader = TokenReader(self.transformer.config)
        self.halfway: list[Tensor] = []
        self.transformer.blocks[READ_AFTER - 1].register_forward_hook(
            lambda _block, _inputs, states: self.halfway.append(states)
        )

    def forward(
        self, latent: Tensor, tokens: Tensor, labels: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mean squared error of the velocity ``noise - latent``, and the reader's cross entropy.

        Args:
            latent: Encoded clips, ``[B, C, T, h, w]``.
            tokens: Captions, ``[B, 24]``.
            labels: Content of the video tokens, ``[B, 3, T, H, W]``.
            sigma: Noise levels, ``[B]``.
        """
        mask = (tokens != 0).long()
        text = self.text_encoder(tokens, mask).last_hidden_state * mask[..., None]
        noise = torch.randn_like(latent)
        level = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1 - level) * latent + level * noise
        velocity = self.transformer(noisy, sigma * 1000, text, return_dict=False)[0]
        error = (velocity.float() - (noise - latent)).square().mean()
        return error, self.reader(self.halfway.pop(), labels.flatten(2))

    def save(self, out: Path, average: dict[str, Tensor]) -> None:
        """Save text encoder and transformer with averaged weights; the student keeps its own."""
        current = {k: v.clone() for k, v in self.state_dict().items()}
        self.load_state_dict(average)
        self.text_encoder.save_pretrained(out / "text_encoder")
        self.transformer.save_pretrained(out / "transformer")
        self.load_state_dict(current)


def create_optimizers(student: Student, lr: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the transformer blocks and AdamW for all other parameters."""
    matrices = [p for p in student.transformer.blocks.parameters() if p.dim() == 2]
    matrix_ids = {id(p) for p in matrices}
    others = [p for p in student.parameters() if id(p) not in matrix_ids and p.requires_grad]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


@torch.no_grad()
def update_average(average: dict[str, Tensor], student: Student, decay: float) -> None:
    """Move averaged weights towards the student's, in place."""
    for name, value in student.state_dict().items():
        average[name].lerp_(value, 1 - decay)


def noise_levels(count: int, shift: float) -> Tensor:
    """Return logit-normal noise levels, shifted towards noise like the scheduler's ``shift``."""
    sigma = torch.randn(count).sigmoid()
    return shift * sigma / (1 + (shift - 1) * sigma)


def load_shards(out: Path, size: str) -> dict[str, Tensor]:
    """Return all encoded clips of one size, concatenated; an empty dictionary if there are none."""
    files = [load_file(p) for p in sorted((out / "latents" / size).glob("*.safetensors"))]
    return {k: torch.cat([f[k] for f in files]) for k in files[0]} if files else {}


class Clips:
    """Encoded clips of one size in shuffled batches.

    Each round reads new shards. In a round, a clip with an object that moves in a circle comes ``orbit_copies``
    times.
    """

    def __init__(
        self, out: Path, size: str, rng: np.random.Generator, orbit_copies: int = 1
    ) -> None:
        self.out, self.size, self.rng, self.orbit_copies = out, size, rng, orbit_copies
        self.data = load_shards(out, size)
        self.order = torch.empty(0, dtype=torch.long)

    def batch(self, opening: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return a batch of about BATCH_TOKENS video tokens.

        Args:
            opening: Take the first latent frame only. Because Wan's encoder is causal, that is a clip of one frame.
                It teaches colours, shapes and positions at a fifth to a thirteenth of the cost.

        Returns:
            Latents ``[B, C, T, h, w]``, caption tokens ``[B, 24]`` and labels ``[B, 3, T, h / 2, w / 2]``.
        """
        _, _, frames, height, width = self.data["latents"].shape
        frames = 1 if opening else frames
        count = max(1, round(BATCH_TOKENS / (frames * height * width // 4)))
        count = min(count, LARGEST_BATCH, len(self.data["tokens"]))
        if len(self.order) < count:
            self.data = load_shards(self.out, self.size)
            orbit = (self.data["labels"][:, 2] == ORBIT).flatten(1).any(1)
            clips = torch.arange(len(orbit)).repeat_interleave(1 + (self.orbit_copies - 1) * orbit)
            self.order = clips[torch.from_numpy(self.rng.permutation(len(clips)))]
        index, self.order = self.order[:count], self.order[count:]
        return (
            self.data["latents"][index, :, :frames],
            self.data["tokens"][index],
            self.data["labels"][index, :, :frames].long(),
        )
