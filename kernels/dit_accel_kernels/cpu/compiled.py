"""Compile the kernel of sparse attention from C++ at its first use, and keep it in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel_kernels.contracts import BlockMap

SOURCE = Path(__file__).with_name("sparse_attention.cpp")
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


Kernel: TypeAlias = "ctypes._NamedFuncPointer"


@functools.cache
def load_kernel() -> Kernel | str:
    """Return the kernel, or the reason why this machine has none."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return f"no C++ compiler ({' or '.join(COMPILERS)})"
    if importlib.util.find_spec("platformdirs") is None:
        return "platformdirs is not installed"
    try:
        kernel = ctypes.CDLL(str(_compile(compiler))).sparse_attention
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        return f"{compiler} failed: {detail.strip().splitlines()[0]}"
    kernel.argtypes, kernel.restype = (ctypes.POINTER(Call),), None
    return kernel


def _compile(compiler: str) -> Path:
    """Return the library for this source, compiler and processor. It is compiled if the cache lacks it."""
    import platformdirs

    what = (compiler, *FLAGS, platform.machine(), _processor(), SOURCE.read_text())
    digest = hashlib.sha256("\0".join(what).encode()).hexdigest()[:16]
    folder = Path(platformdirs.user_cache_dir("dit_accel"))
    library = folder / f"sparse_attention-{digest}.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        # Another process may compile at the same time, so each renames a file of its own.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            target = Path(scratch) / library.name
            command = [compiler, *FLAGS, str(SOURCE), "-o", str(target)]
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
    kernel: Kernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    scale: float,
    return_lse: bool,
    skipped: str | None,
) -> tuple[Tensor, Tensor | None]:
    """Run the kernel. Arguments are those of `dit_accel_kernels.sparse_attention`."""
    dtype = query.dtype
    inputs = [x.float() if dtype == torch.float16 else x for x in (query, key, value)]
    inputs = [x if x.stride(-1) == 1 else x.contiguous() for x in inputs]
    batch, heads, queries, head_dim = query.shape
    # As in a transposed [B, S, H, D] tensor, because pipelines take the output in that order.
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
    kernel(ctypes.byref(call))
    return out.to(dtype), lse
