"""How kernels are launched: a static table of tile shapes per architecture, tuned offline.

``launch.json`` holds what was measured (`dit_accel_eval.bench.tune`), by compute capability; the
tables here serve where it has nothing. No autotuning in the hot path: the first call of a shape would
pay for all candidates.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["dense", "sparse", "small"]


@dataclass(frozen=True)
class Launch:
    """Tile heights (queries and keys), warps and pipeline stages of an attention kernel."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# (kind, bytes of an element of Q and K, padded head_dim) -> launch: what compiles without spills; see
# tests/kernels/test_compiled.py. Times on a GPU decide among those, see eval/results.
WARPGROUP: dict[tuple[str, int, int], Launch] = {  # compute capability 9 and 10
    ("dense", 4, 64): Launch(32, 32, 4, 2),
    ("dense", 4, 128): Launch(32, 32, 8, 2),
    ("dense", 2, 64): Launch(128, 64, 4, 3),
    ("dense", 2, 128): Launch(128, 64, 8, 3),
    ("dense", 1, 64): Launch(128, 64, 8, 3),
    ("dense", 1, 128): Launch(128, 64, 8, 3),
    ("sparse", 4, 64): Launch(32, 32, 4, 2),
    ("sparse", 4, 128): Launch(32, 32, 8, 2),
    ("sparse", 2, 64): Launch(128, 64, 4, 3),
    ("sparse", 2, 128): Launch(128, 64, 8, 3),
    ("sparse", 1, 64): Launch(128, 64, 8, 3),
    ("sparse", 1, 128): Launch(128, 64, 8, 3),
    ("small", 4, 64): Launch(16, 32, 4, 2),  # rests of query groups: half of "sparse"
    ("small", 4, 128): Launch(16, 32, 8, 2),
    ("small", 2, 64): Launch(64, 64, 4, 3),
    ("small", 2, 128): Launch(64, 64, 8, 3),
    ("small", 1, 64): Launch(64, 64, 8, 3),
    ("small", 1, 128): Launch(64, 64, 8, 3),
}
WARP: dict[tuple[str, int, int], Launch] = WARPGROUP | {  # 8 and 12: products of single warps
    ("dense", 2, 64): Launch(64, 64, 4, 3),
    ("dense", 2, 128): Launch(64, 64, 4, 3),
    ("dense", 1, 64): Launch(64, 64, 4, 3),
    ("dense", 1, 128): Launch(64, 64, 4, 3),
    ("sparse", 4, 128): Launch(32, 16, 8, 2),
    ("sparse", 2, 64): Launch(128, 32, 8, 3),
    ("sparse", 2, 128): Launch(128, 32, 8, 3),
    ("sparse", 1, 64): Launch(128, 32, 8, 3),
    ("sparse", 1, 128): Launch(64, 32, 4, 3),
    ("small", 4, 128): Launch(16, 16, 8, 2),
    ("small", 2, 64): Launch(64, 32, 4, 2),
    ("small", 2, 128): Launch(64, 32, 4, 2),
    ("small", 1, 64): Launch(64, 32, 4, 3),
    ("small", 1, 128): Launch(32, 32, 4, 3),
}
# head_dim above 128: correct, not tuned
WIDE: dict[Kind, Launch] = {
    "dense": Launch(32, 32, 8, 2),
    "sparse": Launch(32, 32, 8, 2),
    "small": Launch(16, 32, 8, 2),
}


def read_measured(path: Path) -> dict[tuple[int, str, int, int, int], Launch]:
    """(capability, kind, bytes of Q, bytes of V, head_dim) -> launch, from
    ``{"90": {"dense 2 2 128": [...]}}``.
    """
    found = {}
    for arch, entries in json.loads(path.read_text()).items():
        for name, numbers in entries.items():
            kind, *sizes = name.split()
            query, value, width = map(int, sizes)
            found[int(arch), kind, query, value, width] = Launch(*numbers)
    return found


MEASURED = read_measured(Path(__file__).with_name("launch.json"))


def attention_launch(
    kind: Kind, query: torch.dtype, value: torch.dtype, head_dim: int, arch: int
) -> Launch:
    """Tile shapes for queries and values of some dtypes on a compute capability such as 90."""
    width = max(64, padded(head_dim))
    table = WARPGROUP if arch // 10 in (9, 10) else WARP
    return MEASURED.get((arch, kind, query.itemsize, value.itemsize, width)) or table.get(
        (kind, query.itemsize, width), WIDE[kind]
    )


def capability(tensor: Tensor) -> int:
    """Compute capability of a tensor's device as 10 major + minor; in the interpreter that of Hopper."""
    if not tensor.is_cuda:
        return 90
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def padded(size: int, least: int = 16) -> int:
    """The power of two that a tile dimension needs; products of int8 need 32 at least."""
    return max(least, 1 << (size - 1).bit_length())


def interpreted(tensor: Tensor) -> bool:
    """Whether kernels run in the interpreter, whose bfloat16 products and float8 casts are wrong."""
    return tensor.device.type == "cpu"


def last_contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself if rows of its last axis are contiguous, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
