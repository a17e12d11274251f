"""What the transformer's training stands on: the student (text encoder and transformer with their
loss), its optimizers, and its batches of encoded clips.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers import transformer_wan
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from dit_accel_assets.world import MOTIONS
from tiny_world_readers import TEXT_TOKENS, TokenReader

ORBIT = 1 + MOTIONS.index("moving in a circle")  # as labels of tokens have it

BATCH_TOKENS = 5120  # tokens of a step: 16 whole clips at `smoke`, 4 at `study`, 2 at `show`
READ_AFTER = 4  # blocks of eight
READ_WEIGHT = 0.1  # cross entropy against the velocity's squared error


class PaddingBias(transformer_wan.WanAttnProcessor):
    """Cross attention that counts the last text token ``padding`` times.

    WanPipeline pads a prompt with zeros to ``max_sequence_length`` and attends to them; n equal
    keys are one key whose logit is raised by ln n, so training with one pad token and this bias is
    exact at any padding.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.bias = torch.zeros(1, 1, 1, TEXT_TOKENS, device=device)

    def count(self, padding: int) -> None:
        self.bias[..., -1] = math.log(padding)

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None
    ):
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
    """Attention of ``[B, S, H, D]`` by plain products: on CPU in bfloat16 a third of SDPA's time in
    training.
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores + attn_mask.to(scores.dtype)
    return (scores.softmax(-1) @ value).transpose(1, 2)


class Student(nn.Module):
    """Text encoder and transformer with the flow-matching loss, and the loss of `TokenReader` on the
    state of the video tokens half-way.
    """

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
            lambda _block, _given, states: self.halfway.append(states)
        )

    def forward(
        self, latent: Tensor, tokens: Tensor, labels: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean squared error of the predicted velocity ``noise - latent`` at noise level sigma,
        ``[B]``, and mean cross entropy of what the tokens show, ``[B, 3, T, H, W]``.
        """
        mask = (tokens != 0).long()
        text = self.text_encoder(tokens, mask).last_hidden_state * mask[..., None]
        noise = torch.randn_like(latent)
        level = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1 - level) * latent + level * noise
        velocity = self.transformer(noisy, sigma * 1000, text, return_dict=False)[0]
        error = (velocity.float() - (noise - latent)).square().mean()
        return error, self.reader(self.halfway.pop(), labels.flatten(2))

    def save(self, out: Path, average: dict[str, Tensor] | None = None) -> None:
        own = {k: v.clone() for k, v in self.state_dict().items()}
        if average is not None:
            self.load_state_dict(average)
        self.text_encoder.save_pretrained(out / "text_encoder")
        self.transformer.save_pretrained(out / "transformer")
        self.load_state_dict(own)


def optimizers(student: Student, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer blocks, AdamW for everything else."""
    matrices = [p for p in student.transformer.blocks.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in student.parameters() if id(p) not in chosen and p.requires_grad]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def load_shards(out: Path, size: str) -> dict[str, Tensor]:
    files = [load_file(p) for p in sorted((out / "latents" / size).glob("*.safetensors"))]
    return {k: torch.cat([f[k] for f in files]) for k in files[0]} if files else {}


class Clips:
    """Encoded clips of one size in shuffled batches; shards that were encoded meanwhile join at each
    new round, in which a clip with an object that moves in a circle comes ``orbit_copies`` times.
    """

    def __init__(
        self, out: Path, size: str, rng: np.random.Generator, orbit_copies: int = 1
    ) -> None:
        self.out, self.size, self.rng, self.orbit_copies = out, size, rng, orbit_copies
        self.data = load_shards(out, size)
        self.order = torch.empty(0, dtype=torch.long)

    def batch(self, opening: bool) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, T, h, w]`` latents, ``[B, 24]`` caption tokens and ``[B, 3, T, h/2, w/2]`` labels;
        about BATCH_TOKENS video tokens.

        ``opening`` takes the first latent frame only. Wan's encoder is causal, so that is a clip of
        one frame: a fifth to a thirteenth of the cost for what colours, shapes and places are.
        """
        _, _, frames, height, width = self.data["latents"].shape
        frames = 1 if opening else frames
        count = max(1, round(BATCH_TOKENS / (frames * height * width // 4)))
        count = min(count, 64, len(self.data["tokens"]))
        if len(self.order) < count:
            self.data = load_shards(self.out, self.size)
            orbit = (self.data["labels"][:, 2] == ORBIT).flatten(1).any(1)
            each = torch.arange(len(orbit)).repeat_interleave(1 + (self.orbit_copies - 1) * orbit)
            self.order = each[torch.from_numpy(self.rng.permutation(len(each)))]
        index, self.order = self.order[:count], self.order[count:]
        return (
            self.data["latents"][index, :, :frames],
            self.data["tokens"][index],
            self.data["labels"][index, :, :frames].long(),
        )
