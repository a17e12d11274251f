"""Learned perceptual image patch similarity (Zhang et al. 2018), by the package of its authors."""

from __future__ import annotations

import hashlib
import pickle
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from dit_accel.errors import InvalidSettings, RunFailed, first_line
from dit_accel_eval.metrics.clip_pairs import NoBackbone, TooSmall, check_least_size, paired

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Net = Literal["alex", "vgg"]

# Frames compared at a time: the first layers take about half a GB for a 1080p frame.
FRAMES = 4
# Width of AlexNet's first convolution; VGG's is 3.
ALEX_KERNEL = 11
# Fewest rows and columns that leave a pixel in the last layer.
LEAST_SIZES: dict[Net, int] = {"alex": 31, "vgg": 16}
# Upper ends of bands that TensorRT-LLM uses for videos, in words.
BANDS = ((0.30, "same trajectory"), (0.55, "scene preserved"))
DIVERGED = "diverged"
CACHED = "alexnet-owt-7be5be79.pth"


def lpips(clip: np.ndarray, reference: np.ndarray, *, backbone: Path | None = None) -> float:
    """Return LPIPS (version 0.1) as the mean over frames; 0 means equal clips, larger means less similar.

    Args:
        clip, reference: ``[T, H, W, 3]`` float in [0, 1], or uint8.
        backbone: torchvision's ImageNet weights of AlexNet or VGG16 (``.safetensors`` or ``.pth``), whose features
            are compared. None takes AlexNet's from torch's download folder.

    Raises:
        NoBackbone: if the weights are missing, because nothing is downloaded.
        TooSmall: for frames below the `LEAST_SIZES`.
    """
    first, second = paired(clip, reference)
    model = load_lpips(backbone or cached_backbone())
    check_least_size(clip, LEAST_SIZES[model.pnet_type], f"LPIPS ({model.pnet_type})")
    values = []
    with torch.no_grad():
        for start in range(0, len(first), FRAMES):
            part = slice(start, start + FRAMES)
            values.append(model(first[part], second[part], normalize=True).flatten())
    return float(torch.cat(values).mean())


def lpips_or_reason(
    clip: np.ndarray, reference: np.ndarray, *, backbone: Path | None = None
) -> tuple[float | None, str | None]:
    """Return `lpips` and None, or None and the reason if weights are missing or frames are too small.

    Raises:
        InvalidSettings: if the given backbone does not work.
    """
    try:
        return lpips(clip, reference, backbone=backbone), None
    except TooSmall as error:
        return None, str(error)
    except NoBackbone as error:
        if backbone is not None:
            raise InvalidSettings(str(error)) from None
        return None, str(error)


def lpips_band(value: float) -> str:
    """Return in words what a distance means: the same trajectory, a preserved scene, or another one."""
    return next((words for end, words in BANDS if value < end), DIVERGED)


def net_of(backbone: Path | None) -> Net:
    """Return the network whose features `lpips` compares with a backbone."""
    net: Net = "alex" if backbone is None else load_lpips(backbone).pnet_type
    return net


def cached_backbone() -> Path:
    """Return the path of AlexNet's ImageNet weights in torch's download folder.

    Raises:
        NoBackbone: if the file is missing.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / CACHED
    if not path.is_file():
        raise NoBackbone(
            "LPIPS needs torchvision's alex weights: give --download once to `dit-accel compare`, `eval` or `tune`, "
            f"put {CACHED} into checkpoints of torch's hub folder, or give --lpips-backbone FILE"
        )
    return path


def download_backbone() -> Path:
    """Download AlexNet's ImageNet weights from torchvision into torch's folder, unless they are there.

    Raises:
        RunFailed: if that fails, or the file is not the one that torchvision names.
    """
    from torchvision.models import AlexNet_Weights

    path = Path(torch.hub.get_dir()) / "checkpoints" / CACHED
    if path.is_file():
        return path
    url = AlexNet_Weights.IMAGENET1K_V1.url
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = CACHED.rpartition("-")[2].partition(".")[0]
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
    except (OSError, RuntimeError) as error:
        raise RunFailed(
            f"cannot download {url}: {first_line(error)}; put the file into {path.parent}, or leave --download out"
        ) from None
    return path


def backbone_digest(backbone: Path | None = None) -> str | None:
    """Return a digest of a backbone that works, or None if torch's download folder has none.

    Raises:
        InvalidSettings: if the given backbone does not work.
    """
    import numpy as np

    black = np.zeros((1, 64, 64, 3), np.float32)
    if lpips_or_reason(black, black, backbone=backbone)[0] is None:
        return None
    path = backbone or cached_backbone()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@cache
def load_lpips(backbone: Path) -> Any:
    """Load the authors' linear layers on a backbone, once for the process.

    The attribute ``pnet_type`` of the model names its network.

    Raises:
        NoBackbone: if the file holds neither network.
    """
    import lpips as package
    from safetensors import SafetensorError

    try:
        state = read_weights(backbone)
        net: Net = "alex" if state["features.0.weight"].shape[-1] == ALEX_KERNEL else "vgg"
        model = package.LPIPS(net=net, pnet_rand=True, verbose=False)
        copy_backbone(state, model)
    except (
        OSError,
        RuntimeError,
        LookupError,
        TypeError,
        ValueError,
        SafetensorError,
        pickle.UnpicklingError,
    ) as error:
        reason = first_line(error)
        raise NoBackbone(f"{backbone} holds neither torchvision's alex nor vgg: {reason}") from None
    return model.requires_grad_(False)


def read_weights(path: Path) -> Any:
    """Return the tensors of a ``.safetensors`` or ``.pth`` file by name."""
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def copy_backbone(state: dict[str, Tensor], model: Any) -> None:
    """Copy the convolutions of a torchvision network into an LPIPS model.

    torchvision names them ``features.N.weight``; LPIPS groups them into slices.
    """
    weights = {}
    for name in model.net.state_dict():
        match = re.fullmatch(r"slice\d+\.(\d+\.(?:weight|bias))", name)
        assert match is not None
        weights[name] = state[f"features.{match[1]}"]
    model.net.load_state_dict(weights)
