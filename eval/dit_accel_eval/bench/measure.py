"""Time, memory and error of one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.benchmark import Timer

# glibc keeps freed blocks of up to 32 MiB on the heap.
HEAP_BLOCK = 31 << 20
ERROR_ROWS = 64


def median_seconds(call: Callable[[], Any], device: str, min_run_time: float = 0.5) -> float:
    """Return the median wall time of a warm call, including all its work on the device.

    Args:
        call: function to time.
        device: device that the call works on.
        min_run_time: seconds to measure for, at least.
    """
    timer = make_warm_timer(call)
    if device == "cpu":
        longest = 10 * min_run_time
        return timer.adaptive_autorange(min_run_time=min_run_time, max_run_time=longest).median
    return timer.blocked_autorange(min_run_time=min_run_time).median


def quick_median_seconds(call: Callable[[], Any], min_run_time: float = 0.1) -> float:
    """Return the median wall time of few warm calls.

    Measure again later and take the median, because another program may slow all of these calls.
    """
    return make_warm_timer(call).blocked_autorange(min_run_time=min_run_time).median


def make_warm_timer(call: Callable[[], Any]) -> Timer:
    """Run a call once and return a timer for it.

    The heap is prepared as in a process that loaded a model. Before the first large block is freed, glibc returns
    memory to the system after each call, so the next call pays for new pages.
    """
    from torch.utils.benchmark import Timer

    torch.empty(HEAP_BLOCK, dtype=torch.uint8, device="cpu")
    call()
    return Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())


def peak_extra_bytes(call: Callable[[], Any], device: str) -> int | None:
    """Return the peak device memory of a call beyond what was allocated before, or None on a CPU."""
    if device == "cpu":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def sampled_error(
    out: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> float:
    """Return the relative L1 error against float64 attention on 64 query rows of the first head.

    Args:
        out, query, key, value: ``[B, H, S, D]``.
        mask: bool ``[64, S]``, the keys that these rows may see. A row without keys is 0. None means all keys.
    """
    rows = sample_rows(query.shape[2]).to(query.device)
    scores = query[0, 0, rows].double() @ key[0, 0].double().t() * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    exact = scores.softmax(-1).nan_to_num() @ value[0, 0].double()
    return float((out[0, 0, rows].double() - exact).abs().sum() / exact.abs().sum())


def sample_rows(tokens: int) -> Tensor:
    """Return the indices of 64 evenly spaced rows."""
    return torch.arange(ERROR_ROWS) * tokens // ERROR_ROWS
