"""LPIPS on random weights, and those weights as torchvision names them."""

from __future__ import annotations

import lpips
import torch
from torch import Tensor


def seeded(net: str) -> lpips.LPIPS:
    torch.manual_seed(0)
    return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)


def torchvision_state(model: lpips.LPIPS) -> dict[str, Tensor]:
    """The backbone of a model."""
    state = model.net.state_dict()
    return {"features." + name.split(".", 1)[1]: value for name, value in state.items()}
