"""Seconds, memory and error of one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

HEAP_BLOCK = 31 << 20  # bytes; glibc's largest block that it may keep on the heap is of 32 MiB


def seconds(work: Callable[[], Any], device: str, least: float = 0.5) -> float:
    """Median wall seconds of a call, warmed up, after all its work on the device is done."""
    timer = warm_timer(work)
    if device == "cpu":
        return timer.adaptive_autorange(min_run_time=least, max_run_time=10 * least).median
    return timer.blocked_autorange(min_run_time=least).median


def seconds_now(work: Callable[[], Any], least: float = 0.1) -> float:
    """Median wall seconds of few calls, warmed up. Another program may slow all of them: who asks comes back later,
    and takes the median again.
    """
    return warm_timer(work).blocked_autorange(min_run_time=least).median


def warm_timer(work: Callable[[], Any]) -> Timer:
    """A timer of a call that ran once, in a process whose heap is that of one that loaded a model: until a large
    block was freed, glibc gives memory back after every call, and the next one pays for its pages again.
    """
    torch.empty(HEAP_BLOCK, dtype=torch.uint8, device="cpu")
    work()
    return Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())


def extra_bytes(work: Callable[[], Any], device: str) -> int | None:
    """Peak device memory of a call beyond what was there before it; None on a CPU."""
    if device == "cpu":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def error_of(out: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> float:
    """Relative L1 error against float64 attention on 64 query rows of the first head.

    ``mask`` bool ``[64, S]`` says which keys those rows may see; without any key a row is 0.
    """
    rows = sampled_rows(query.shape[2]).to(query.device)
    scores = query[0, 0, rows].double() @ key[0, 0].double().t() * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    exact = scores.softmax(-1).nan_to_num() @ value[0, 0].double()
    return float((out[0, 0, rows].double() - exact).abs().sum() / exact.abs().sum())


def sampled_rows(tokens: int) -> Tensor:
    """64 rows at even strides."""
    return torch.arange(64) * tokens // 64
