"""Shift-tolerant LPIPS (Ghildyal and Liu, ECCV 2022), with the weights that come in the package of its authors.

Only the file of the weights is read. The package itself is not imported, because it imports others that it does not
declare.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dit_accel_eval.metrics.clip_pairs import NoBackbone, TooSmall, check_least_size, paired

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PACKAGE = "stlpips_pytorch"
WEIGHTS = "weights/vST0.0/alex_shift_tolerant.pth"
# Pixels compared at a time: the first layer has 64 channels at full resolution.
PIXELS = 4 * 256 * 256
# Most frames that are compared, evenly spaced: a frame takes 16 times the products of LPIPS in the first layer.
MOST_FRAMES = 16
# Fewest rows and columns that leave the blur of the last layer enough to mirror.
LEAST_SIZE = 21
# Added to the length of a feature vector.
EPSILON = 1e-10


def st_lpips(clip: np.ndarray, reference: np.ndarray) -> float:
    """Return ST-LPIPS of AlexNet as the mean over at most `MOST_FRAMES` frames, evenly spaced; 0 means equal clips.

    Args:
        clip, reference: ``[T, H, W, 3]`` float in [0, 1], or uint8.

    Raises:
        NoBackbone: if the package with the weights is not installed.
        TooSmall: for frames below the `LEAST_SIZE`.
    """
    functional = torch.nn.functional
    first, second = paired(clip, reference)
    places = torch.linspace(0, len(first) - 1, min(len(first), MOST_FRAMES)).round().long()
    first, second, weights = first[places], second[places], load_weights()
    check_least_size(clip, LEAST_SIZE, "ST-LPIPS")
    frames = max(1, PIXELS // (first.shape[-2] * first.shape[-1]))
    values = []
    with torch.no_grad():
        for start in range(0, len(first), frames):
            part = slice(start, start + frames)
            pairs = zip(
                features(first[part], weights), features(second[part], weights), strict=True
            )
            layers = (
                functional.conv2d((a - b).square(), weights[f"lin{layer}.model.1.weight"])
                for layer, (a, b) in enumerate(pairs)
            )
            values.append(sum(layer.mean(dim=(1, 2, 3)) for layer in layers))
    return float(torch.cat([torch.as_tensor(value) for value in values]).mean())


def st_lpips_or_reason(clip: np.ndarray, reference: np.ndarray) -> tuple[float | None, str | None]:
    """Return `st_lpips` and None, or None and the reason if it cannot be measured."""
    try:
        return st_lpips(clip, reference), None
    except (NoBackbone, TooSmall) as error:
        return None, str(error)


def find_st_weights() -> Path:
    """Return the file of the weights in the installed package.

    Raises:
        NoBackbone: if it is missing.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / WEIGHTS
        if path.is_file():
            return path
    raise NoBackbone("ST-LPIPS needs the weights of a package: pip install 'dit_accel[metrics]'")


@cache
def load_weights() -> dict[str, Tensor]:
    """Return the weights by name, read once for the process.

    Raises:
        NoBackbone: if they are not there.
    """
    weights: dict[str, Tensor] = torch.load(
        find_st_weights(), map_location="cpu", weights_only=True
    )
    return weights


def features(frames: Tensor, weights: dict[str, Tensor]) -> list[Tensor]:
    """Return the features of five layers with length 1.

    AlexNet's strides are replaced by blurs, so that a shift of one pixel changes little.

    Args:
        frames: ``[T, 3, H, W]`` in [0, 1].
        weights: Weights by name.
    """
    functional = torch.nn.functional

    def convolve(inputs: Tensor, name: str, padding: int) -> Tensor:
        weight, bias = weights[f"net.{name}.weight"], weights[f"net.{name}.bias"]
        return functional.conv2d(inputs, weight, bias, padding=padding)

    def blur(inputs: Tensor, name: str) -> Tensor:
        kernel = weights[f"net.{name}.filt"]  # [C, 1, 3, 3]
        mirrored = functional.pad(inputs, (2, 2, 2, 2), mode="reflect")
        return functional.conv2d(mirrored, kernel, stride=2, groups=len(kernel))

    def pool(inputs: Tensor) -> Tensor:
        return functional.max_pool2d(inputs, kernel_size=3, stride=1)

    scaled = (2 * frames - 1 - weights["scaling_layer.shift"]) / weights["scaling_layer.scale"]
    layers = [blur(convolve(scaled, "slice1.0", 2), "slice1.1").relu()]
    layers.append(convolve(blur(pool(layers[-1]), "slice2.4"), "slice2.5", 2).relu())
    layers.append(convolve(blur(pool(layers[-1]), "slice3.8"), "slice3.9", 1).relu())
    layers.append(convolve(layers[-1], "slice4.11", 1).relu())
    layers.append(convolve(layers[-1], "slice5.13", 1).relu())
    return [layer / (layer.norm(dim=1, keepdim=True) + EPSILON) for layer in layers]
