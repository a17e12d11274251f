"""CLIP score (Hessel et al. 2021): how well frames fit their prompt, by torchmetrics."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dit_accel_eval.metrics.clips import NoBackbone, one

MODEL = "openai/clip-vit-base-patch16"
FRAMES = 8  # that a score looks at, evenly spaced


def clip_score(clip: np.ndarray, prompt: str, *, folder: Path | None = None) -> float:
    """100 times the cosine between image and text, at least 0, mean over up to eight frames.

    Args:
        clip: ``[T, H, W, 3]`` float in [0, 1], or uint8.
        folder: a CLIP model as ``save_pretrained`` writes it; None: the one in the hub's local cache.

    Raises:
        NoBackbone: if there is none; nothing is downloaded.
    """
    frames = one(clip)
    chosen = torch.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().long()
    pictures = (frames[chosen] * 255).round().clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        score = load_clip(folder)(list(pictures), [prompt] * len(pictures))
    return float(score)


def clip_score_or_reason(clip: np.ndarray, prompt: str) -> tuple[float | None, str | None]:
    """`clip_score`, or None and why it cannot be measured here."""
    try:
        return clip_score(clip, prompt), None
    except NoBackbone as error:
        return None, str(error)


@cache
def load_clip(folder: Path | None = None) -> Any:
    """The metric on a model's weights, kept for the process.

    Raises:
        NoBackbone: if there is no such model here.
    """
    from huggingface_hub import snapshot_download
    from torchmetrics.multimodal import CLIPScore
    from transformers import CLIPModel, CLIPProcessor

    try:
        path = folder or snapshot_download(MODEL, local_files_only=True)
        parts = (
            CLIPModel.from_pretrained(path, use_safetensors=True, local_files_only=True),
            CLIPProcessor.from_pretrained(path, local_files_only=True),
        )
    except (OSError, ValueError) as error:
        if folder is None:
            raise NoBackbone(f"CLIP score needs {MODEL} in the hub's local cache") from None
        reason = str(error).splitlines()[0]
        raise NoBackbone(f"{folder} does not hold a CLIP model: {reason}") from None
    return CLIPScore(lambda: (Projected(parts[0]), parts[1]))


class Projected(nn.Module):
    """A CLIP model whose features are tensors, as torchmetrics wants them; transformers 5 gives an output object."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return _tensor(self.model.get_image_features(pixel_values))  # type: ignore[operator]

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return _tensor(self.model.get_text_features(input_ids, attention_mask))  # type: ignore[operator]


def _tensor(features: Any) -> Tensor:
    return features if isinstance(features, Tensor) else features.pooler_output
