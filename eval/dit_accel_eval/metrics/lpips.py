"""Learned perceptual image patch similarity (Zhang et al. 2018), by the package of its authors."""

from __future__ import annotations

import hashlib
import pickle
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

import lpips as package
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dit_accel.errors import InvalidSettings
from dit_accel_eval.metrics.clips import NoBackbone, paired

Net = Literal["alex", "vgg"]

FRAMES = 4  # compared at a time: a 1080p frame takes about half a GB in the first layers
ALEX_KERNEL = 11  # columns of its first convolution; VGG's has 3
CACHED = "alexnet-owt-7be5be79.pth"


def lpips(clip: np.ndarray, reference: np.ndarray, *, backbone: Path | None = None) -> float:
    """LPIPS (version 0.1), per frame, mean over frames; 0 for equal clips, larger is farther.

    Args:
        clip, reference: ``[T, H, W, 3]`` float in [0, 1], or uint8; at least 16 x 16.
        backbone: torchvision's ImageNet weights of AlexNet or VGG16 (``.safetensors`` or ``.pth``), whose features
            are then compared; None: AlexNet's, where torch keeps downloads.

    Raises:
        NoBackbone: if there are none; nothing is downloaded.
    """
    first, second = paired(clip, reference)
    model = load_lpips(backbone or cached_backbone())
    values = []
    with torch.no_grad():
        for start in range(0, len(first), FRAMES):
            part = slice(start, start + FRAMES)
            values.append(model(first[part], second[part], normalize=True).flatten())
    return float(torch.cat(values).mean())


def lpips_or_reason(
    clip: np.ndarray, reference: np.ndarray, *, backbone: Path | None = None
) -> tuple[float | None, str | None]:
    """`lpips`, or None and why it cannot be measured here.

    Raises:
        InvalidSettings: if the backbone that was given is none.
    """
    try:
        return lpips(clip, reference, backbone=backbone), None
    except NoBackbone as error:
        if backbone is not None:
            raise InvalidSettings(str(error)) from None
        return None, str(error)


def net_of(backbone: Path | None) -> Net:
    """Which network's features `lpips` compares with a backbone."""
    net: Net = "alex" if backbone is None else load_lpips(backbone).pnet_type
    return net


def cached_backbone() -> Path:
    """Where torch keeps the downloaded ImageNet weights of AlexNet.

    Raises:
        NoBackbone: if it does not.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / CACHED
    if not path.is_file():
        raise NoBackbone(
            f"LPIPS needs torchvision's alex weights: put {CACHED} into checkpoints of torch's hub "
            "folder, or give --lpips-backbone FILE"
        )
    return path


def backbone_digest(backbone: Path | None = None) -> str | None:
    """What tells a backbone from others, checked to be one; None if there is none.

    Raises:
        InvalidSettings: if the one that was given is none.
    """
    black = np.zeros((1, 64, 64, 3), np.float32)
    if lpips_or_reason(black, black, backbone=backbone)[0] is None:
        return None
    path = backbone or cached_backbone()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@cache
def load_lpips(backbone: Path) -> Any:
    """The model with the authors' linear layers on a backbone from a file, kept for the process; its ``pnet_type`` is
    the network.

    Raises:
        NoBackbone: if the file holds neither network.
    """
    try:
        state = (
            load_file(backbone)
            if backbone.suffix == ".safetensors"
            else torch.load(backbone, map_location="cpu", weights_only=True)
        )
        net: Net = "alex" if state["features.0.weight"].shape[-1] == ALEX_KERNEL else "vgg"
        model = package.LPIPS(net=net, pnet_rand=True, verbose=False)
        put_backbone(model, state)
    except (
        *(OSError, RuntimeError, LookupError, TypeError, ValueError),
        *(SafetensorError, pickle.UnpicklingError),
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NoBackbone(f"{backbone} holds neither torchvision's alex nor vgg: {reason}") from None
    return model.requires_grad_(False)


def put_backbone(model: Any, state: dict[str, Tensor]) -> None:
    """Give LPIPS the convolutions of a torchvision network (``features.N.weight``), which it keeps in slices."""
    own = model.net.state_dict()
    found = {}
    for name in own:
        match = re.fullmatch(r"slice\d+\.(\d+\.(?:weight|bias))", name)
        assert match is not None
        found[name] = state[f"features.{match[1]}"]
    model.net.load_state_dict(found)
