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
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from dit_accel_assets.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    caption,
    held_out,
    sample_words,
)

TEXT_TOKENS = 24  # the longest caption has 21 with its end mark; the rest is padding
BATCH_TOKENS = 5120  # tokens of a step: 16 whole clips at `smoke`, 4 at `study`, 2 at `show`


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
    """Text encoder and transformer with the flow-matching loss."""

    def __init__(self, model: Path) -> None:
        super().__init__()
        self.text_encoder = UMT5EncoderModel.from_pretrained(
            model / "text_encoder", dtype=torch.float32
        )
        self.transformer = WanTransformer3DModel.from_pretrained(
            model / "transformer", dtype=torch.float32
        )

    def forward(self, latent: Tensor, tokens: Tensor, sigma: Tensor) -> Tensor:
        """Mean squared error of the predicted velocity ``noise - latent`` at noise level sigma,
        ``[B]``.
        """
        mask = (tokens != 0).long()
        text = self.text_encoder(tokens, mask).last_hidden_state * mask[..., None]
        noise = torch.randn_like(latent)
        level = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1 - level) * latent + level * noise
        velocity = self.transformer(noisy, sigma * 1000, text, return_dict=False)[0]
        return (velocity.float() - (noise - latent)).square().mean()

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
    new round.
    """

    def __init__(self, out: Path, size: str, rng: np.random.Generator) -> None:
        self.out, self.size, self.rng = out, size, rng
        self.data = load_shards(out, size)
        self.order = torch.empty(0, dtype=torch.long)

    def batch(self, opening: bool) -> tuple[Tensor, Tensor]:
        """``[B, C, T, h, w]`` latents and ``[B, 24]`` caption tokens, about BATCH_TOKENS of them.

        ``opening`` takes the first latent frame only. Wan's encoder is causal, so that is a clip of
        one frame: a fifth to a thirteenth of the cost for what colours, shapes and places are.
        """
        _, _, frames, height, width = self.data["latents"].shape
        frames = 1 if opening else frames
        count = max(1, round(BATCH_TOKENS / (frames * height * width // 4)))
        count = min(count, 64, len(self.data["tokens"]))
        if len(self.order) < count:
            self.data = load_shards(self.out, self.size)
            self.order = torch.from_numpy(self.rng.permutation(len(self.data["tokens"])))
        index, self.order = self.order[:count], self.order[count:]
        return self.data["latents"][index, :, :frames], self.data["tokens"][index]


class PhraseReader(nn.Module):
    """What teaches the text encoder which words belong together: from the state at any word of a
    phrase, name colour, shape and motion of that phrase's object, and the background.

    The diffusion loss alone leaves a bag of words for thousands of steps: captions of one object need
    no more.
    """

    def __init__(self, text_encoder: UMT5EncoderModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        words = (COLOURS, SHAPES, MOTIONS, BACKGROUNDS)
        width = text_encoder.config.d_model
        self.heads = nn.ModuleList(nn.Linear(width, len(w)) for w in words)

    def forward(self, tokens: Tensor, phrase: Tensor, answers: Tensor) -> Tensor:
        """Mean cross entropy over the words inside phrases.

        Args:
            tokens: ``[B, 24]``.
            phrase: index of the object each token speaks of, ``[B, 24]``, -1 for none.
            answers: colour, shape, motion and background of each object, ``[B, 2, 4]``.
        """
        states = self.text_encoder(tokens, (tokens != 0).long()).last_hidden_state
        row, place = (phrase >= 0).nonzero(as_tuple=True)
        wanted = answers[row, phrase[row, place]]  # [words, 4]
        losses = [
            nn.functional.cross_entropy(head(states[row, place]), wanted[:, i])
            for i, head in enumerate(self.heads)
        ]
        return torch.stack(losses).mean()


def phrase_batch(
    tokenizer: PreTrainedTokenizerBase, rng: np.random.Generator, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments of `PhraseReader` for random captions of the training set, two objects each."""
    drawn = []
    while len(drawn) < size:
        scene = sample_words(rng, 2)
        if not held_out(caption(scene)):
            drawn.append(scene)
    texts = [caption(s) for s in drawn]
    tokens = tokenizer(texts, padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt")
    phrase = torch.full((size, TEXT_TOKENS), -1)
    answers = torch.empty(size, 2, 4, dtype=torch.long)
    for row, scene in enumerate(drawn):
        start = 0
        for index, thing in enumerate(scene.things):
            stop = start + len(thing.phrase().split())
            phrase[row, start:stop] = index
            start = stop + 1  # "and"
            answers[row, index] = torch.tensor(
                [
                    list(COLOURS).index(thing.colour),
                    SHAPES.index(thing.shape),
                    MOTIONS.index(thing.motion),
                    list(BACKGROUNDS).index(scene.background),
                ]
            )
    return tokens["input_ids"], phrase, answers
