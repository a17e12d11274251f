"""Scores of one image and its prompt: PickScore, the logit of CLIP, and LAION's aesthetic score.

PickScore (arXiv 2305.01569) is a CLIP model that was trained on preferences. Weights are read from safetensors files on
this machine, without remote code. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dit_accel.errors import first_line
from dit_accel.generation.loading import without_loading_bars
from dit_accel_eval.metrics.clip_pairs import NoBackbone, to_tensor
from dit_accel_eval.metrics.clip_score import return_tensor

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PICKSCORE = "yuvalkirstain/PickScore_v1"
PICKSCORE_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
CLIP_LARGE = "openai/clip-vit-large-patch14"
AESTHETIC = "RE-N-Y/laion-aesthetic"
LONGEST_TEXT = 77
"""Number of tokens that CLIP's text encoder reads."""


def find_model(repository: str, weights: Path | None = None) -> Path:
    """Return the folder of a model.

    Args:
        repository: hub id of the model, such as ``"openai/clip-vit-large-patch14"``.
        weights: folder that holds the model's folder, such as ``clip-vit-large-patch14``. None takes the hub's local
            cache.

    Raises:
        NoBackbone: if the model is missing, because nothing is downloaded.
    """
    if weights is not None:
        folder = weights / repository.split("/")[1]
        if folder.is_dir():
            return folder
        raise NoBackbone(f"there is no folder {folder} with {repository}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except (OSError, ValueError):
        raise NoBackbone(f"{repository} is not in the hub's local cache") from None


def find_weights_file(repository: str, weights: Path | None = None) -> Path:
    """Return the folder of a model that has a safetensors file.

    Raises:
        NoBackbone: as `find_model`, and if there is no such file.
    """
    folder = find_model(repository, weights)
    if not any(folder.glob("*.safetensors")):
        raise NoBackbone(f"{repository} has no .safetensors file in {folder}")
    return folder


@dataclass(frozen=True)
class ClipModel:
    """A CLIP model that scores an image with a prompt.

    Attributes:
        model: transformers' ``CLIPModel``.
        processor: transformers' ``CLIPProcessor``.
    """

    model: Any
    processor: Any

    @classmethod
    def load(cls, folder: Path, processor: Path | None = None, device: str = "cpu") -> ClipModel:
        """Load a model from its folder.

        Args:
            folder: folder of the model.
            processor: folder of its tokenizer and image processor, if it is another one.
            device: device that the model runs on.

        Raises:
            NoBackbone: if a file is missing or damaged.
        """
        from safetensors import SafetensorError
        from transformers import CLIPModel, CLIPProcessor

        try:
            with without_loading_bars():
                model = CLIPModel.from_pretrained(
                    folder, use_safetensors=True, local_files_only=True
                )
            chosen = CLIPProcessor.from_pretrained(processor or folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError, LookupError, SafetensorError) as error:
            raise NoBackbone(f"{folder} does not hold a CLIP model: {first_line(error)}") from None
        return cls(model.eval().requires_grad_(False).to(device), chosen)

    def embed_frame(self, frame: np.ndarray) -> Tensor:
        """Return the normalised embedding ``[C]`` of a frame ``[H, W, 3]``."""
        from PIL import Image

        pixels = (to_tensor(frame[None])[0] * 255).round().clamp(0, 255).to(torch.uint8)
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        inputs = self.processor(images=image, return_tensors="pt").to(self.model.device)
        return normalize(return_tensor(self.model.get_image_features)(inputs["pixel_values"]))

    def embed_text(self, text: str) -> Tensor:
        """Return the normalised embedding ``[C]`` of a text."""
        inputs = self.processor(
            text=[text],
            padding=True,
            truncation=True,
            max_length=LONGEST_TEXT,
            return_tensors="pt",
        ).to(self.model.device)
        known = inputs["input_ids"], inputs["attention_mask"]
        return normalize(return_tensor(self.model.get_text_features)(*known))

    def score(self, frame: np.ndarray, prompt: str) -> float:
        """Return the cosine similarity of a frame and a prompt, times the model's own scale."""
        cosine = self.embed_frame(frame) @ self.embed_text(prompt)
        return float(self.model.logit_scale.exp() * cosine)


def normalize(features: Tensor) -> Tensor:
    """Return the only row of ``[1, C]`` with length 1."""
    row = features[0].float()
    return torch.nn.functional.normalize(row, dim=0)


def load_pickscore(weights: Path | None = None, device: str = "cpu") -> ClipModel:
    """Load PickScore v1.

    Raises:
        NoBackbone: if a file is missing.
    """
    folder = find_weights_file(PICKSCORE, weights)
    return ClipModel.load(folder, find_model(PICKSCORE_PROCESSOR, weights), device)


def load_clip_large(weights: Path | None = None, device: str = "cpu") -> ClipModel:
    """Load OpenAI's CLIP ViT-L/14.

    Raises:
        NoBackbone: if a file is missing.
    """
    return ClipModel.load(find_weights_file(CLIP_LARGE, weights), None, device)


def load_aesthetic(
    clip: ClipModel, weights: Path | None = None
) -> Callable[[np.ndarray, str], float]:
    """Load LAION's aesthetic predictor, a chain of linear layers over CLIP ViT-L/14's image embedding.

    Raises:
        NoBackbone: if a file is missing, or holds no such layers.
    """
    folder = find_weights_file(AESTHETIC, weights)
    layers = read_linear_layers(folder, clip.model.device)

    def predict(embedding: Tensor) -> float:
        for weight, bias in layers:
            embedding = torch.nn.functional.linear(embedding, weight, bias)
        return float(embedding)

    try:
        predict(torch.zeros(clip.model.config.projection_dim, device=clip.model.device))
    except (RuntimeError, ValueError) as error:
        raise NoBackbone(f"{folder} does not fit {CLIP_LARGE}: {first_line(error)}") from None
    return lambda frame, _: predict(clip.embed_frame(frame))


def read_linear_layers(folder: Path, device: Any) -> list[tuple[Tensor, Tensor]]:
    """Return weights ``[out, in]`` and biases of the layers ``mlp.layers.N`` in a folder, in their order.

    Raises:
        NoBackbone: if a file is damaged, or there are no such layers.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, Tensor] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt", device="cpu") as file:
                names = [name for name in file.keys() if name.startswith("mlp.layers.")]  # noqa: SIM118
                tensors |= {name: file.get_tensor(name).float().to(device) for name in names}
        return _pair_layers(tensors)
    except (SafetensorError, LookupError, ValueError, OSError) as error:
        raise NoBackbone(f"{folder} holds no aesthetic predictor: {first_line(error)}") from None


def _pair_layers(tensors: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    numbers = sorted({int(name.split(".")[2]) for name in tensors})
    if not numbers:
        raise ValueError("no tensor mlp.layers.N.weight")
    names = [f"mlp.layers.{number}" for number in numbers]
    return [(tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in names]
