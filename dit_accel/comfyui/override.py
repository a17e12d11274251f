"""One attention call in the form that ComfyUI passes to an attention override."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Attention = Callable[..., Tensor]
"""An override as ComfyUI calls it: ``override(func, q, k, v, heads, mask=..., transformer_options=..., ...)``."""


@dataclass(frozen=True)
class OverrideCall:
    """One call of an attention override.

    Attributes:
        func: ComfyUI's own attention.
        query, key, value: ``[B, H, S, D]`` if ``skip_reshape`` is among the keywords, else ``[B, S, H * D]``.
        heads: Number of heads.
        keywords: All other arguments.
    """

    func: Attention
    query: Tensor
    key: Tensor
    value: Tensor
    heads: int
    keywords: Mapping[str, Any]

    @property
    def mask(self) -> Tensor | None:
        """Return the attention mask, ``[S, S]`` or ``[B, H or 1, S or 1, S]``, or None.

        ComfyUI omits the head axis of some masks.
        """
        mask: Tensor | None = self.keywords.get("mask")
        return mask.unsqueeze(1) if mask is not None and mask.dim() == 3 else mask

    @property
    def transformer_options(self) -> Mapping[str, Any]:
        """Return ComfyUI's ``transformer_options`` of the model call."""
        return self.keywords.get("transformer_options") or {}

    @property
    def scale(self) -> float:
        """Return the softmax scale."""
        scale = self.keywords.get("scale")
        head_dim = self.query.shape[-1] // (1 if self._has_split_input else self.heads)
        return float(head_dim**-0.5 if scale is None else scale)

    def count_tokens(self) -> tuple[int, int]:
        """Return the number of queries and the number of keys."""
        axis = 2 if self._has_split_input else 1
        return self.query.shape[axis], self.key.shape[axis]

    def split_inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value as ``[B, S, H, D]``."""
        split = self._has_split_input
        query, key, value = (
            self._to_bshd(tensor, split) for tensor in (self.query, self.key, self.value)
        )
        return query, key, value

    def split_output(self, output: Tensor) -> Tensor:
        """Convert an output from ComfyUI's form to ``[B, S, H, D]``."""
        return self._to_bshd(output, bool(self.keywords.get("skip_output_reshape")))

    def join_output(self, attended: Tensor) -> Tensor:
        """Convert an output ``[B, S, H, D]`` to the form that ComfyUI expects."""
        if self.keywords.get("skip_output_reshape"):
            return attended.transpose(1, 2)
        return attended.flatten(2)

    def pass_on(self, previous: Attention | None) -> Tensor:
        """Return the output of an earlier override, or of ComfyUI's own attention if there is none."""
        arguments = (self.query, self.key, self.value, self.heads)
        if previous is None:
            return self.func(*arguments, **self.keywords)
        return previous(self.func, *arguments, **self.keywords)

    @property
    def _has_split_input(self) -> bool:
        return bool(self.keywords.get("skip_reshape"))

    def _to_bshd(self, tensor: Tensor, is_split: bool) -> Tensor:
        return tensor.transpose(1, 2) if is_split else tensor.unflatten(-1, (self.heads, -1))


def build_override(answer: Callable[[OverrideCall], Tensor]) -> Attention:
    """Return the override that ComfyUI calls, from a function that answers an `OverrideCall`."""

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
        keywords = {
            "mask": mask,
            "attn_precision": attn_precision,
            **kwargs,
            "skip_reshape": skip_reshape,
            "skip_output_reshape": skip_output_reshape,
        }
        return answer(OverrideCall(func, q, k, v, heads, keywords))

    return attend
