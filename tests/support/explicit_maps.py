"""Perturbed attention by explicit attention maps: slow, plain, and independent of the product's code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    visual: Tensor,
    heads: list[int],
    softness: float,
    kind: str,
    text_mode: str,
) -> Tensor:
    """``((1 - u) A + u P) V`` of ``[B, H, S, D]`` tensors; ``visual`` is bool ``[S]``."""
    size, scale = query.shape[2], query.shape[-1] ** -0.5
    if mask is None:
        added = torch.zeros(1, 1, 1, size)
    elif mask.dtype == torch.bool:
        added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    else:
        added = mask
    scores = query @ key.transpose(-1, -2) * scale + added
    maps = scores.softmax(-1)
    rows = torch.ones(size, dtype=torch.bool) if text_mode == "joint" else visual
    among = rows[:, None] & rows[None]
    if kind == "identity":
        eye = torch.eye(size, dtype=torch.bool)
        weak = scores.masked_fill(among & ~eye, -torch.inf)
    elif kind == "uniform":
        mean = (scores.masked_fill(~among, 0.0).sum(-1) / rows.sum())[..., None]
        weak = torch.where(among, mean if text_mode == "visual" else added, scores)
    else:
        mean = query[:, :, rows].mean(2, keepdim=True)
        weak = (mean @ key.transpose(-1, -2) * scale + added).expand_as(scores)
    weak = torch.where(rows[:, None], weak.softmax(-1), maps)
    mixed = maps.clone()
    mixed[:, heads] = (1 - softness) * maps[:, heads] + softness * weak[:, heads]
    return mixed @ value


class ExplicitMaps(TorchFunctionMode):
    """Replaces PyTorch's attention inside some attention modules."""

    def __init__(self, perturb: Callable[[nn.Module, Tensor, Tensor, Tensor, Any], Tensor]) -> None:
        super().__init__()
        self.perturb = perturb
        self.inside: nn.Module | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and self.inside is not None:
            names = ("query", "key", "value", "attn_mask")
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            qkv = (given[name] for name in names[:3])
            return self.perturb(self.inside, *qkv, given.get("attn_mask"))
        return func(*args, **kwargs)

    @contextmanager
    def on(self, modules: list[nn.Module]) -> Iterator[None]:
        """While a forward runs."""
        with ExitStack() as stack:
            for module in modules:
                enter = module.register_forward_pre_hook(lambda m, *_: setattr(self, "inside", m))
                leave = module.register_forward_hook(lambda *_: setattr(self, "inside", None))
                stack.callback(enter.remove)
                stack.callback(leave.remove)
            stack.enter_context(self)
            yield
