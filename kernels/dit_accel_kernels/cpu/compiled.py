"""Compile the kernels of a CPU from C++ at their first use, and keep them in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dit_accel_kernels.contracts import ContractError

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel_kernels.contracts import BlockMap

FOLDER = Path(__file__).parent
SOURCES = ("sparse_attention.cpp", "kmeans.cpp", "selection.cpp")
COMPILERS = ("g++", "clang++")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread")
SKIPPED = {None: 0, "centroid": 1, "expansion": 2}
POINTERS = ("query", "key", "value", "out", "lse", "selected", "query_order", "query_offsets")
SIZES = ("batch", "heads", "queries", "keys", "head_dim", "query_groups", "key_groups")


class Call(ctypes.Structure):
    """The arguments of the kernel, as the C++ source declares them."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*POINTERS, "key_order", "key_offsets")),
        ("strides", ctypes.c_int64 * 12),
        *((name, ctypes.c_int64) for name in SIZES),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("is_bfloat16", "skipped", "threads")),
    )


class TokensOfCall(ctypes.Structure):
    """Tokens of k-means, as the C++ source declares them."""

    _fields_ = (
        ("start", ctypes.c_void_p),
        ("strides", ctypes.c_int64 * 3),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "tokens", "head_dim")),
        *((name, ctypes.c_int32) for name in ("is_bfloat16", "threads")),
    )


@functools.cache
def load_library() -> ctypes.CDLL | str:
    """Return the compiled kernels, or the reason why this machine has none."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return f"no C++ compiler ({' or '.join(COMPILERS)})"
    try:
        return ctypes.CDLL(str(_compile(compiler)))
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        return f"{compiler} failed: {detail.strip().splitlines()[0]}"


def library_for(x: Tensor) -> ctypes.CDLL | str:
    """Return the kernels that take a tensor, or the reason why there are none."""
    from torch._subclasses.fake_tensor import FakeTensor  # at the top, it would load torch

    return "a fake tensor has no memory" if isinstance(x, FakeTensor) else load_library()


def _compile(compiler: str) -> Path:
    """Return the library for these sources, compiler and processor. It is compiled if the cache lacks it."""
    import platformdirs

    texts = [(FOLDER / name).read_text() for name in (*SOURCES, "vectors.h")]
    what = (compiler, *FLAGS, platform.machine(), _processor(), *texts)
    digest = hashlib.sha256("\0".join(what).encode()).hexdigest()[:16]
    folder = Path(platformdirs.user_cache_dir("dit_accel"))
    library = folder / f"kernels-{digest}.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        # Another process may compile at the same time, so each renames a file of its own.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            target = Path(scratch) / library.name
            sources = [str(FOLDER / name) for name in SOURCES]
            command = [compiler, *FLAGS, *sources, "-o", str(target)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
            target.replace(library)
    return library


def _processor() -> str:
    """Return what tells processors apart that need other instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(next((x for x in lines if x.startswith(k)), "") for k in ("model name", "flags"))


def attend(
    library: ctypes.CDLL,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    scale: float,
    return_lse: bool,
    skipped: str | None,
) -> tuple[Tensor, Tensor | None]:
    """Run sparse attention. Arguments are those of `dit_accel_kernels.sparse_attention`."""
    inputs = [_readable(x) for x in (query, key, value)]
    batch, heads, queries, head_dim = query.shape
    # Pipelines take the output as [B, S, H, D], so it is stored in that order.
    out = inputs[0].new_empty(batch, queries, heads, head_dim).transpose(1, 2)
    lse = inputs[0].new_empty(query.shape[:3], dtype=torch.float32) if return_lse else None
    query_groups = (block_map.query_order, block_map.query_offsets)
    groups = (*query_groups, block_map.key_order, block_map.key_offsets)
    map_tensors = [block_map.selected.contiguous(), *(x.long().contiguous() for x in groups)]
    tensors = (*inputs, out)
    call = Call(
        *(x.data_ptr() for x in tensors),
        None if lse is None else lse.data_ptr(),
        *(x.data_ptr() for x in map_tensors),
        (ctypes.c_int64 * 12)(*(n for x in tensors for n in x.stride()[:3])),
        *(batch, heads, queries, key.shape[2], head_dim, *block_map.selected.shape[2:]),
        scale,
        *(inputs[0].dtype == torch.bfloat16, SKIPPED[skipped], torch.get_num_threads()),
    )
    library.sparse_attention(ctypes.byref(call))
    return out.to(query.dtype), lse


def _readable(x: Tensor) -> Tensor:
    """Return a tensor as the kernels read it: float32 or bfloat16, with the last axis in one piece."""
    x = x.float() if x.dtype == torch.float16 else x
    return x if x.stride(-1) == 1 else x.contiguous()


def nearest_centroid(library: ctypes.CDLL, tokens: Tensor, centroids: Tensor) -> Tensor:
    """Run `dit_accel_kernels.kmeans_assign`."""
    batch, heads, count, _ = centroids.shape
    # The largest x . c - |c|^2 / 2 belongs to the nearest centroid. The kernel takes 8 rows at a time.
    padding = -count % 8
    bias = -0.5 * centroids.float().square().sum(-1)
    bias = torch.nn.functional.pad(bias, (0, padding), value=-torch.inf)
    centroids = torch.nn.functional.pad(centroids.float(), (0, 0, 0, padding)).contiguous()
    labels = centroids.new_empty(batch, heads, tokens.shape[2], dtype=torch.int64)
    x = _readable(tokens)
    library.nearest_centroid(
        ctypes.byref(_describe_tokens(x)),
        *_pointers(centroids, bias),
        ctypes.c_int64(count + padding),
        *_pointers(labels),
    )
    return labels


def group_means(
    library: ctypes.CDLL,
    tokens: Tensor,
    order: Tensor,
    offsets: Tensor,
    empty: Tensor,
    *,
    squared: bool,
) -> Tensor:
    """Return the means of groups, or of squares, float32 ``[B, H, G, D]``; an empty group gets its row of ``empty``."""
    x, empty = _readable(tokens), empty.float().contiguous()
    order, offsets = order.contiguous(), offsets.contiguous()
    means = torch.empty_like(empty)
    library.group_means(
        ctypes.byref(_describe_tokens(x)),
        *_pointers(order, offsets),
        ctypes.c_int64(empty.shape[2]),
        ctypes.c_int32(squared),
        *_pointers(empty, means),
    )
    return means


def group_by_label(library: ctypes.CDLL, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Run `dit_accel_kernels.group_by_label`.

    Raises:
        ContractError: If a label is not in ``0 .. count - 1``.
    """
    labels = labels.long().contiguous()
    order = torch.empty_like(labels)
    offsets = labels.new_zeros(*labels.shape[:-1], count + 1)
    rows = labels.shape[:-1].numel()
    sizes = (ctypes.c_int64(n) for n in (rows, labels.shape[-1], count))
    if not library.group_by_label(*_pointers(labels), *sizes, *_pointers(order, offsets)):
        found = f"{labels.min().item()} .. {labels.max().item()}"
        raise ContractError("labels", f"in 0 .. {count - 1}", found)
    return order, offsets


def select_shared_budget(
    library: ctypes.CDLL, score: Tensor, cost: Tensor, budget: float
) -> Tensor:
    """Run `dit_accel_kernels.select_shared_budget`."""
    score, cost = score.float().contiguous(), cost.long().contiguous()
    chosen = torch.empty_like(score, dtype=torch.bool)
    sizes = (ctypes.c_int64(n) for n in score.shape)
    library.select_shared_budget(
        *_pointers(score, cost), *sizes, ctypes.c_double(budget), *_pointers(chosen)
    )
    return chosen


def _describe_tokens(x: Tensor) -> TokensOfCall:
    strides = (ctypes.c_int64 * 3)(*x.stride()[:3])
    is_bfloat16 = x.dtype == torch.bfloat16
    return TokensOfCall(x.data_ptr(), strides, *x.shape, is_bfloat16, torch.get_num_threads())


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(x.data_ptr()) for x in tensors]
