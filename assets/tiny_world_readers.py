"""What teaches the model which words belong together: readers that name what a state speaks of, with
the captions' and the scenes' own words as labels. They are trained along and left out of the model.

The diffusion loss alone gets there too slowly: captions of one object need no binding, and of two
objects most of the error is not about it.
"""

from __future__ import annotations

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
    held_out,
    sample_words,
)

TEXT_TOKENS = 24  # the longest caption has 21 with its end mark; the rest is padding
TOKEN_PIXELS, TOKEN_FRAMES = 16, 4  # of a video token: the VAE's 8 x 8 x 4, patches of 2 x 2
SHOWN_FROM = 0.25  # share of a token's pixels an object covers to be what the token shows
NOTHING_WEIGHT = 0.2  # six tokens of seven show the background


class PhraseReader(nn.Module):
    """What teaches the text encoder which words belong together: from the state at any word of a
    phrase, name colour, shape and motion of that phrase's object, and the background.
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


class TokenReader(nn.Module):
    """What teaches the transformer whose motion is whose: from the state of a video token, name
    colour, shape and motion of the object it shows, or none.

    Representation alignment (REPA, Yu et al. 2024, arXiv:2410.06940) with exact labels where REPA
    takes the features of a vision model.
    """

    def __init__(self, config) -> None:
        super().__init__()
        width = config.num_attention_heads * config.attention_head_dim
        self.heads = nn.ModuleList(
            nn.Linear(width, 1 + len(words)) for words in (COLOURS, SHAPES, MOTIONS)
        )

    def forward(self, states: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of `token_labels`, ``[B, 3, S]``, from states ``[B, S, C]``."""
        states = nn.functional.layer_norm(states.float(), states.shape[-1:])
        losses = []
        for head, label in zip(self.heads, labels.unbind(1), strict=True):
            weight = torch.ones(head.out_features, device=states.device)
            weight[0] = NOTHING_WEIGHT
            scores = head(states).flatten(0, 1).float()
            losses.append(nn.functional.cross_entropy(scores, label.flatten(), weight))
        return torch.stack(losses).mean()


def token_labels(scene: Scene, height: int, width: int, frames: int) -> np.ndarray:
    """What each video token shows: index of colour, shape and motion, 0 for none;
    ``[3, 1 + (frames - 1) / 4, height / 16, width / 16]`` uint8.
    """
    rows, columns, sample = height // TOKEN_PIXELS, width // TOKEN_PIXELS, 4
    y = ((np.arange(sample * rows, dtype=np.float32) + 0.5) / (sample * rows))[:, None]
    x = ((np.arange(sample * columns, dtype=np.float32) + 0.5) / (sample * columns))[None]
    time = np.linspace(0.0, 1.0, frames)
    shares, seen = [], np.ones((frames, len(y), x.shape[1]), np.float32)
    for thing in reversed(scene.things):  # later ones cover earlier ones
        alpha = coverage(thing, time, x, y, 1.0 / (sample * rows)) * seen
        seen = seen - alpha
        cells = alpha.reshape(frames, rows, sample, columns, sample).mean(axis=(2, 4))
        later = cells[1:].reshape(-1, TOKEN_FRAMES, rows, columns).mean(axis=1)
        shares.append(np.concatenate([cells[:1], later]))
    share = np.stack(shares[::-1])  # [objects, T, H, W]
    first, shown = share.argmax(axis=0), share.max(axis=0) > SHOWN_FROM
    words = np.array(
        [
            (list(COLOURS).index(t.colour), SHAPES.index(t.shape), MOTIONS.index(t.motion))
            for t in scene.things
        ]
    )
    named = np.moveaxis(words[first], -1, 0) + 1  # [3, T, H, W]
    return np.ascontiguousarray(np.where(shown, named, 0), dtype=np.uint8)
