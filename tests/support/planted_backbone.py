"""LPIPS with random weights, and its backbone as torchvision names the weights."""

from __future__ import annotations

import lpips
import torch
from torch import Tensor


def seeded(net: str) -> lpips.LPIPS:
    """Return LPIPS with random weights from a fixed seed."""
    torch.manual_seed(0)
    return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)


def torchvision_state(model: lpips.LPIPS) -> dict[str, Tensor]:
    """Return the weights of the backbone by their names in torchvision."""
    state = model.net.state_dict()
    return {"features." + name.split(".", 1)[1]: value for name, value in state.items()}
