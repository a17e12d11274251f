"""One attention call as ComfyUI hands it to an override, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Attention = Callable[..., Tensor]
Tokens = tuple[Tensor, Tensor, Tensor]  # [B, S, H, D] each


@dataclass(frozen=True)
class OverrideCall:
    """What an override is asked for.

    Attributes:
        func: the attention that would run.
        query, key, value: ``[B, H, S, D]`` if ``skip_reshape`` is named, else ``[B, S, H * D]``.
        heads: their number.
        named: all other arguments.
    """

    func: Attention
    query: Tensor
    key: Tensor
    value: Tensor
    heads: int
    named: Mapping[str, Any]

    @property
    def mask(self) -> Tensor | None:
        """The attention mask ``[S, S]`` or ``[B, H or 1, S or 1, S]``: ComfyUI leaves out the heads of others."""
        mask: Tensor | None = self.named.get("mask")
        return mask.unsqueeze(1) if mask is not None and mask.dim() == 3 else mask

    @property
    def options(self) -> Mapping[str, Any]:
        """ComfyUI's ``transformer_options``."""
        return self.named.get("transformer_options") or {}

    @property
    def scale(self) -> float:
        """What scores are multiplied with."""
        told = self.named.get("scale")
        width = self.query.shape[-1] // (1 if self.named.get("skip_reshape") else self.heads)
        return float(width**-0.5 if told is None else told)

    def counts(self) -> tuple[int, int]:
        """Queries and keys."""
        axis = 2 if self.named.get("skip_reshape") else 1
        return self.query.shape[axis], self.key.shape[axis]

    def tokens(self) -> Tokens:
        """Query, key and value ``[B, S, H, D]``."""
        apart = bool(self.named.get("skip_reshape"))
        return (
            self._split(self.query, apart),
            self._split(self.key, apart),
            self._split(self.value, apart),
        )

    def split(self, out: Tensor) -> Tensor:
        """``[B, S, H, D]`` from an output as it is asked for."""
        return self._split(out, bool(self.named.get("skip_output_reshape")))

    def joined(self, out: Tensor) -> Tensor:
        """The inverse."""
        return out.transpose(1, 2) if self.named.get("skip_output_reshape") else out.flatten(2)

    def onward(self, other: Attention | None) -> Tensor:
        """The call handed to the override that was there before, or else to the attention that would run."""
        if other is None:
            return self.func(self.query, self.key, self.value, self.heads, **self.named)
        return other(self.func, self.query, self.key, self.value, self.heads, **self.named)

    def _split(self, x: Tensor, apart: bool) -> Tensor:
        return x.transpose(1, 2) if apart else x.unflatten(-1, (self.heads, -1))


def override(answer: Callable[[OverrideCall], Tensor]) -> Attention:
    """The override that ComfyUI calls, from what answers a call."""

    def attend(
        func: Attention,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        attn_precision: Any = None,
        skip_reshape: bool = False,
        skip_output_reshape: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        named = {"mask": mask, "attn_precision": attn_precision, **kwargs}
        named |= {"skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape}
        return answer(OverrideCall(func, q, k, v, heads, named))

    return attend
