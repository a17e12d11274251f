"""Teach the model which words belong together: readers name what its states describe.

Readers are linear layers. Their labels are the words of captions and scenes. They are trained with the model, but
the saved model does not contain them.

The diffusion loss alone teaches this too slowly. Captions of one object need no binding of words. With two objects,
most of the error has other causes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from dit_accel_assets.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    Scene,
    caption,
    coverage,
    is_held_out,
    sample_words,
)

# The longest caption has 21 tokens with its end mark; the rest is padding.
TEXT_TOKENS = 24

# Pixels and frames of a video token: the VAE compresses by 8 x 8 x 4, and patches are 2 x 2.
TOKEN_PIXELS, TOKEN_FRAMES = 16, 4

# A token shows an object that covers a larger share of its pixels.
SHOWN_FROM = 0.25

# Six of seven tokens show the background.
NOTHING_WEIGHT = 0.2


class PhraseReader(nn.Module):
    """Loss that teaches the text encoder which words belong together.

    From the state at any word of a phrase, it names colour, shape and motion of the phrase's object, and the
    background.
    """

    def __init__(self, text_encoder: UMT5EncoderModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        words = (COLOURS, SHAPES, MOTIONS, BACKGROUNDS)
        width = text_encoder.config.d_model
        self.heads = nn.ModuleList(nn.Linear(width, len(w)) for w in words)

    def forward(self, tokens: Tensor, phrase: Tensor, answers: Tensor) -> Tensor:
        """Return the mean cross entropy over the words in phrases.

        Args:
            tokens: ``[B, 24]``.
            phrase: Index of the object that each token describes, ``[B, 24]``; -1 for none.
            answers: Colour, shape, motion and background of each object, ``[B, 2, 4]``.
        """
        states = self.text_encoder(tokens, (tokens != 0).long()).last_hidden_state
        row, column = (phrase >= 0).nonzero(as_tuple=True)
        labels = answers[row, phrase[row, column]]  # [words, 4]
        losses = [
            nn.functional.cross_entropy(head(states[row, column]), labels[:, i])
            for i, head in enumerate(self.heads)
        ]
        return torch.stack(losses).mean()


def phrase_batch(
    tokenizer: PreTrainedTokenizerBase, rng: np.random.Generator, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the arguments of `PhraseReader` for random training captions of two objects."""
    scenes: list[Scene] = []
    while len(scenes) < size:
        scene = sample_words(rng, 2)
        if not is_held_out(caption(scene)):
            scenes.append(scene)
    texts = [caption(scene) for scene in scenes]
    tokens = tokenizer(texts, padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt")
    phrase = torch.full((size, TEXT_TOKENS), -1)
    answers = torch.empty(size, 2, 4, dtype=torch.long)
    for row, scene in enumerate(scenes):
        start = 0
        for index, thing in enumerate(scene.things):
            stop = start + len(thing.phrase().split())
            phrase[row, start:stop] = index
            # The next phrase starts after "and".
            start = stop + 1
            answers[row, index] = torch.tensor(
                [
                    list(COLOURS).index(thing.colour),
                    SHAPES.index(thing.shape),
                    MOTIONS.index(thing.motion),
                    list(BACKGROUNDS).index(scene.background),
                ]
            )
    return tokens["input_ids"], phrase, answers


class TokenReader(nn.Module):
    """Loss that teaches the transformer which motion belongs to which object.

    From the state of a video token, it names colour, shape and motion of the object that the token shows, or none.
    This is representation alignment (REPA, Yu et al. 2024, arXiv:2410.06940) with exact labels instead of the
    features of a vision model.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.num_attention_heads * config.attention_head_dim
        self.heads = nn.ModuleList(
            nn.Linear(width, 1 + len(words)) for words in (COLOURS, SHAPES, MOTIONS)
        )

    def forward(self, states: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross entropy of `token_labels` ``[B, 3, S]`` from states ``[B, S, C]``."""
        states = nn.functional.layer_norm(states.float(), states.shape[-1:])
        losses = []
        for head, label in zip(self.heads, labels.unbind(1), strict=True):
            weight = torch.ones(head.out_features, device=states.device)
            weight[0] = NOTHING_WEIGHT
            scores = head(states).flatten(0, 1).float()
            losses.append(nn.functional.cross_entropy(scores, label.flatten(), weight))
        return torch.stack(losses).mean()


def token_labels(scene: Scene, height: int, width: int, frames: int) -> np.ndarray:
    """Return indices of colour, shape and motion of the object that each video token shows; 0 for none.

    The result is uint8 ``[3, 1 + (frames - 1) / 4, height / 16, width / 16]``.
    """
    shares = covered_shares(scene, height // TOKEN_PIXELS, width // TOKEN_PIXELS, frames)
    nearest, is_shown = shares.argmax(axis=0), shares.max(axis=0) > SHOWN_FROM
    words = np.array(
        [
            (list(COLOURS).index(t.colour), SHAPES.index(t.shape), MOTIONS.index(t.motion))
            for t in scene.things
        ]
    )
    labels = np.moveaxis(words[nearest], -1, 0) + 1  # [3, T, H, W]
    return np.ascontiguousarray(np.where(is_shown, labels, 0), dtype=np.uint8)


def covered_shares(scene: Scene, rows: int, columns: int, frames: int) -> np.ndarray:
    """Return the share of each video token that each object covers visibly, ``[objects, T, rows, columns]``."""
    sample = 4  # points per token and axis
    y = ((np.arange(sample * rows, dtype=np.float32) + 0.5) / (sample * rows))[:, None]
    x = ((np.arange(sample * columns, dtype=np.float32) + 0.5) / (sample * columns))[None]
    time = np.linspace(0.0, 1.0, frames)
    shares, visible = [], np.ones((frames, len(y), x.shape[1]), np.float32)
    # Later objects cover earlier ones.
    for thing in reversed(scene.things):
        alpha = coverage(thing, time, x, y, 1.0 / (sample * rows)) * visible
        visible = visible - alpha
        cells = alpha.reshape(frames, rows, sample, columns, sample).mean(axis=(2, 4))
        later = cells[1:].reshape(-1, TOKEN_FRAMES, rows, columns).mean(axis=1)
        shares.append(np.concatenate([cells[:1], later]))
    return np.stack(shares[::-1])
