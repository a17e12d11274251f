"""CLIP score (Hessel et al. 2021, by torchmetrics): how well frames match their prompt."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dit_accel.generation.loading import without_loading_bars
from dit_accel_eval.metrics.clip_pairs import NoBackbone, to_tensor

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MODEL = "openai/clip-vit-base-patch16"
NO_MODEL = f"CLIP score needs {MODEL} in the hub's local cache"
# Number of evenly spaced frames that a score uses.
FRAMES = 8


def clip_score(clip: np.ndarray, prompt: str, *, folder: Path | None = None) -> float:
    """Return 100 times the cosine similarity of image and text, at least 0, as the mean over up to eight frames.

    Args:
        clip: ``[T, H, W, 3]`` float in [0, 1], or uint8.
        prompt: text that the clip was made from.
        folder: folder of a CLIP model as ``save_pretrained`` writes it; None takes the hub's local cache.

    Raises:
        NoBackbone: if the model is missing, because nothing is downloaded.
    """
    frames = to_tensor(clip)
    chosen = torch.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().long()
    images = (frames[chosen] * 255).round().clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        score = load_clip(folder)(list(images), [prompt] * len(images))
    return float(score)


def clip_score_or_reason(clip: np.ndarray, prompt: str) -> tuple[float | None, str | None]:
    """Return `clip_score` and None, or None and the reason if the model is missing."""
    try:
        return clip_score(clip, prompt), None
    except NoBackbone as error:
        return None, str(error)


def cached_clip() -> Path:
    """Return the folder of the CLIP model in the hub's local cache.

    Raises:
        NoBackbone: if the model is missing.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(MODEL, local_files_only=True))
    except (OSError, ValueError):
        raise NoBackbone(NO_MODEL) from None


@cache
def load_clip(folder: Path | None = None) -> Any:
    """Load torchmetrics' CLIP score once for the process.

    Raises:
        NoBackbone: if the model is missing.
    """
    from torchmetrics.multimodal import CLIPScore
    from transformers import CLIPModel, CLIPProcessor

    try:
        path = folder or cached_clip()
        with without_loading_bars():
            model = CLIPModel.from_pretrained(path, use_safetensors=True, local_files_only=True)
        processor = CLIPProcessor.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        if folder is None:
            raise NoBackbone(NO_MODEL) from None
        reason = str(error).splitlines()[0]
        raise NoBackbone(f"{folder} does not hold a CLIP model: {reason}") from None
    for name in ("get_image_features", "get_text_features"):
        setattr(model, name, return_tensor(getattr(model, name)))
    return CLIPScore(lambda: (model, processor))


def return_tensor(compute_features: Callable[..., Any]) -> Callable[..., Tensor]:
    """Wrap a method of a CLIP model to return a tensor, because torchmetrics needs one.

    In transformers 5 these methods return an output object.
    """

    def compute_tensor(*inputs: Tensor) -> Tensor:
        features = compute_features(*inputs)
        return features if isinstance(features, torch.Tensor) else features.pooler_output

    return compute_tensor
