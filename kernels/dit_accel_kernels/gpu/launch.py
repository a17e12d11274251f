"""Choose the tile shapes of a kernel from a static table, tuned offline per architecture.

``launch.json`` holds measured shapes by compute capability; `dit_accel_eval.bench.tune` writes it. The
tables in this file serve where it has no entry. The hot path never autotunes, because the first call
of a shape would pay for all candidates.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["dense", "sparse", "small"]


@dataclass(frozen=True)
class Launch:
    """Tile shape and pipelining of an attention kernel.

    Attributes:
        block_m: query rows of a tile.
        block_n: keys of a tile.
        num_warps: warps of a program.
        num_stages: pipeline stages of the loop over keys.
        tail_mask: mask the last tile of keys only; False masks every tile.
        narrow_offsets: use 32-bit offsets inside a head where they fit.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    tail_mask: bool = True
    narrow_offsets: bool = True


# Keys are (kind, bytes of an element of Q and K, of V, padded head_dim). These shapes compile without
# spills, but for two that tests/kernels/test_compiled.py names. Times on a GPU (eval/results) decide
# among them. "small" tiles take the remainders of query groups.

# Compute capability 9 and 10: matrix instructions of four warps.
WARPGROUP: dict[tuple[str, int, int, int], Launch] = {
    ("dense", 4, 4, 64): Launch(32, 16, 8, 2),
    ("dense", 4, 4, 128): Launch(16, 16, 8, 2),
    ("dense", 2, 2, 64): Launch(128, 64, 4, 3),
    ("dense", 2, 2, 128): Launch(128, 64, 8, 3),
    ("dense", 1, 2, 64): Launch(128, 64, 8, 3),
    ("dense", 1, 2, 128): Launch(128, 64, 8, 3),
    ("dense", 1, 1, 64): Launch(128, 64, 8, 3),
    ("dense", 1, 1, 128): Launch(128, 128, 8, 3),
    ("sparse", 4, 4, 64): Launch(32, 16, 8, 2),
    ("sparse", 4, 4, 128): Launch(16, 16, 8, 2),
    ("sparse", 1, 4, 128): Launch(32, 32, 8, 2, tail_mask=False),
    ("sparse", 2, 2, 64): Launch(128, 64, 4, 3),
    ("sparse", 2, 2, 128): Launch(128, 64, 8, 3),
    ("sparse", 1, 2, 64): Launch(128, 64, 8, 3),
    ("sparse", 1, 2, 128): Launch(128, 64, 8, 3),
    ("sparse", 1, 1, 64): Launch(128, 64, 8, 3),
    ("sparse", 1, 1, 128): Launch(128, 64, 8, 3),
    ("small", 4, 4, 64): Launch(16, 16, 8, 2),
    ("small", 4, 4, 128): Launch(16, 16, 8, 2),
    ("small", 2, 2, 64): Launch(64, 64, 4, 3),
    ("small", 2, 2, 128): Launch(64, 64, 4, 3),
    ("small", 1, 2, 64): Launch(64, 64, 4, 3),
    ("small", 1, 2, 128): Launch(64, 64, 4, 3),
    ("small", 1, 1, 64): Launch(64, 64, 4, 3),
    ("small", 1, 1, 128): Launch(64, 64, 4, 3),
}
# Compute capability 8 and 12: matrix instructions of single warps, and 99 KB of shared memory. The code of
# a separate last tile makes some of these kernels spill.
WARP: dict[tuple[str, int, int, int], Launch] = WARPGROUP | {
    ("dense", 2, 2, 64): Launch(64, 64, 4, 3),
    ("dense", 2, 2, 128): Launch(128, 64, 8, 2, tail_mask=False),
    ("dense", 1, 2, 64): Launch(64, 64, 4, 3),
    ("dense", 1, 2, 128): Launch(128, 64, 8, 3),
    ("dense", 1, 1, 128): Launch(128, 64, 8, 3),
    ("sparse", 2, 2, 64): Launch(128, 32, 8, 3),
    ("sparse", 2, 2, 128): Launch(128, 32, 8, 3, tail_mask=False),
    ("sparse", 1, 2, 64): Launch(64, 32, 4, 3),
    ("sparse", 1, 2, 128): Launch(64, 32, 4, 3, tail_mask=False),
    ("sparse", 1, 1, 64): Launch(128, 32, 8, 3, tail_mask=False),
    ("sparse", 1, 1, 128): Launch(64, 32, 4, 3, tail_mask=False),
    ("small", 2, 2, 64): Launch(64, 32, 4, 2),
    ("small", 2, 2, 128): Launch(64, 32, 4, 2, tail_mask=False),
    ("small", 1, 2, 64): Launch(64, 32, 4, 3),
    ("small", 1, 2, 128): Launch(32, 32, 4, 3, tail_mask=False),
    ("small", 1, 1, 64): Launch(64, 32, 4, 3, tail_mask=False),
    ("small", 1, 1, 128): Launch(32, 32, 4, 3, tail_mask=False),
}

# Sparse tiles of compute capability 8.0 alone, where those above spill. Keys are as above.
WARP_80 = {
    ("sparse", 1, 2, 64): Launch(64, 32, 4, 2, tail_mask=False),
    ("small", 1, 2, 64): Launch(64, 32, 4, 2, tail_mask=False),
}

# Dense tiles for a head_dim below its padded width, whose loads take more registers. Keys are as above.
PADDED_WARPGROUP = {("dense", 2, 2, 128): Launch(128, 64, 8, 3, tail_mask=False)}
PADDED_WARP = {("dense", 2, 2, 128): Launch(128, 32, 8, 3, tail_mask=False)}

# Sparse tiles of a kernel that also attends to stand-ins, whose loop takes more registers. Keys are as above.
STAND_INS = {("sparse", 1, 4, 128): Launch(32, 16, 8, 2, tail_mask=False)}
STAND_INS_WARPGROUP = STAND_INS | {
    ("sparse", 1, 2, 128): Launch(128, 64, 8, 3),
    ("small", 1, 4, 128): Launch(16, 16, 8, 2),
}
STAND_INS_WARP = STAND_INS | {("small", 2, 2, 128): Launch(32, 32, 4, 2, tail_mask=False)}


def select_untuned_launch(kind: Kind, value_bytes: int, width: int) -> Launch:
    """Return a tile shape that fits any architecture, for types and widths without an entry."""
    rows, keys = (32, 32) if value_bytes * width <= 512 else (32, 16)
    return Launch(rows // 2 if kind == "small" else rows, keys, 8, 2)


def read_measured(path: Path) -> dict[tuple[int, str, int, int, int], Launch]:
    """Read measured launches from a file such as ``{"90": {"dense 2 2 128": [128, 64, 8, 3]}}``.

    Returns:
        a launch by (compute capability, kind, bytes of Q, bytes of V, head_dim).
    """
    measured = {}
    for arch, entries in json.loads(path.read_text()).items():
        for name, numbers in entries.items():
            kind, *sizes = name.split()
            query_bytes, value_bytes, head_dim = map(int, sizes)
            measured[int(arch), kind, query_bytes, value_bytes, head_dim] = Launch(*numbers)
    return measured


MEASURED = read_measured(Path(__file__).with_name("launch.json"))


def select_launch(
    kind: Kind,
    query: torch.dtype,
    value: torch.dtype,
    head_dim: int,
    arch: int,
    *,
    stand_ins: bool = False,
) -> Launch:
    """Return the tile shape of a kernel.

    Args:
        kind: "dense", "sparse", or "small" for the remainders of query groups.
        query, value: dtypes that are multiplied.
        head_dim: channels of a head.
        arch: compute capability as `compute_capability` returns it, such as 90.
        stand_ins: a sparse kernel also attends to stand-ins.
    """
    width = max(64, pad_to_power_of_two(head_dim))
    key = (kind, query.itemsize, value.itemsize, width)
    has_warpgroups = arch // 10 in (9, 10)
    special: dict[tuple[str, int, int, int], Launch] = {}
    if arch == 80:
        special |= WARP_80
    if stand_ins:
        special |= STAND_INS_WARPGROUP if has_warpgroups else STAND_INS_WARP
    if head_dim < width:
        special |= PADDED_WARPGROUP if has_warpgroups else PADDED_WARP
    table = WARPGROUP if has_warpgroups else WARP
    entry = special.get(key) or MEASURED.get((arch, *key)) or table.get(key)
    return entry or select_untuned_launch(kind, value.itemsize, width)


def compute_capability(tensor: Tensor) -> int:
    """Return the compute capability of a tensor's device as 10 major + minor.

    The interpreter counts as Hopper (90).
    """
    if not tensor.is_cuda:
        return 90
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def pad_to_power_of_two(size: int, minimum: int = 16) -> int:
    """Return the smallest power of two that a tile of ``size`` fits in.

    Products of int8 need a ``minimum`` of 32.
    """
    return max(minimum, 1 << (size - 1).bit_length())


def needs_wide_offsets(*tensors: Tensor) -> bool:
    """Return True if an offset inside one head of ``[..., S, D]`` passes 32 bits.

    Kernels compute offsets for up to one tile of rows beyond the last.
    """
    return any(
        x.stride(axis) * (x.shape[axis] + 256) >= 2**31 for x in tensors for axis in (-2, -1)
    )


def is_interpreted(tensor: Tensor) -> bool:
    """Return True if kernels on this tensor run in the interpreter.

    Its bfloat16 products and float8 casts are wrong, so kernels simulate them there.
    """
    return tensor.device.type == "cpu"


def make_last_contiguous(tensor: Tensor) -> Tensor:
    """Return the tensor itself if its last axis has stride 1, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
