"""Compute perturbed attention by explicit attention maps.

This oracle is slow, plain, and shares no code with the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def explicit_attention(
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
    """Compute ``((1 - u) A + u P) V`` with attention map A and perturbed map P.

    Args:
        query, key, value: ``[B, H, S, D]``.
        mask: additive or bool, or None.
        visual: bool ``[S]``, True for visual tokens.
        heads: perturbed heads.
        softness: u.
        kind: a perturbation of `PerturbedGuidance`.
        text_mode: ``"joint"`` perturbs text rows too.
    """
    scale = query.shape[-1] ** -0.5
    bias = _additive_mask(mask, query.shape[2])
    scores = query @ key.transpose(-1, -2) * scale + bias
    maps = scores.softmax(-1)
    rows = torch.ones_like(visual) if text_mode == "joint" else visual
    pairs = rows[:, None] & rows[None]
    if kind == "identity":
        eye = torch.eye(len(visual), dtype=torch.bool)
        perturbed = scores.masked_fill(pairs & ~eye, -torch.inf)
    elif kind == "uniform":
        mean = (scores.masked_fill(~pairs, 0.0).sum(-1) / rows.sum())[..., None]
        perturbed = torch.where(pairs, mean if text_mode == "visual" else bias, scores)
    elif kind.endswith("-identity"):
        perturbed = _move_weights(maps, pairs, keep=kind == "renormalized-identity")
    else:
        mean = query[:, :, rows].mean(2, keepdim=True)
        perturbed = (mean @ key.transpose(-1, -2) * scale + bias).expand_as(scores)
    if not kind.endswith("-identity"):
        perturbed = perturbed.softmax(-1)
    perturbed = torch.where(rows[:, None], perturbed, maps)
    mixed = maps.clone()
    mixed[:, heads] = (1 - softness) * maps[:, heads] + softness * perturbed[:, heads]
    return mixed @ value


def _move_weights(maps: Tensor, pairs: Tensor, keep: bool) -> Tensor:
    """Return maps without the weights on other tokens in ``pairs``, or with these weights on the diagonal."""
    eye = torch.eye(len(pairs), dtype=torch.bool)
    if keep:
        on_diagonal = (maps * pairs).sum(-1, keepdim=True) * eye
        return torch.where(pairs, on_diagonal, maps)
    return maps.masked_fill(pairs & ~eye, 0.0)


def _additive_mask(mask: Tensor | None, size: int) -> Tensor:
    """Return the mask as numbers to add to the scores."""
    if mask is None:
        return torch.zeros(1, 1, 1, size)
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    return mask


class ExplicitMaps(TorchFunctionMode):
    """A replacement of PyTorch's attention inside some attention modules.

    Args:
        perturb: called with module, query, key, value and mask; returns the attention.
    """

    def __init__(self, perturb: Callable[[nn.Module, Tensor, Tensor, Tensor, Any], Tensor]) -> None:
        super().__init__()
        self.perturb = perturb
        self.current_module: nn.Module | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and self.current_module is not None:
            names = ("query", "key", "value", "attn_mask")
            arguments = {**dict(zip(names, args, strict=False)), **kwargs}
            qkv = (arguments[name] for name in names[:3])
            return self.perturb(self.current_module, *qkv, arguments.get("attn_mask"))
        return func(*args, **kwargs)

    @contextmanager
    def patch(self, modules: list[nn.Module]) -> Iterator[None]:
        """Replace the attention of some modules during a forward."""

        def enter(module: nn.Module, *_: Any) -> None:
            self.current_module = module

        def leave(*_: Any) -> None:
            self.current_module = None

        with ExitStack() as stack:
            for module in modules:
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave).remove)
            stack.enter_context(self)
            yield
