"""Every attention kernel compiled ahead of time for five architectures, without a GPU: the matrix
instruction, no spills, shared memory within the limit. The table is printed (``pytest -rP``).
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dit_accel_kernels.gpu import (
    centroid_attention,
    dense_attention,
    grouping,
    kmeans,
    merge,
    planner,
    quantize,
    sparse_attention,
)
from dit_accel_kernels.gpu.launch import Launch, attention_launch, padded

ARCHITECTURES = {80: 166912, 89: 101376, 90: 232448, 100: 232448, 120: 101376}  # shared bytes
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
INT64 = {"query_order", "query_offsets", "key_order", "key_offsets", "order", "offsets", "labels"}
INT32 = {"tile_start", "tile_group", "key_list", "key_count", "packed_start", "key_group"}
INT32 |= {"rank", "counts", "starts"}
FLOAT32 = {"lse", "first_lse", "second_lse", "query_scale", "key_scale", "value_scale", "half_norm"}
FLOAT32 |= {"value_mean", "log_size", "mean", "means"}
SCALARS = {"heads", "tokens", "groups", "tiles", "capacity", "count", "rows", "query_tokens"}
SCALARS |= {"chunks", "key_tokens", "query_groups", "key_groups"}
NAMES = {"float32": "*fp32", "bfloat16": "*bf16", "int8": "*i8", "float8_e4m3fn": "*fp8e4nv"}


def compiled(
    kernel: Any, arch: int, constants: dict[str, Any], types: dict[str, str], launch: Launch
):
    """Compile a kernel as its launcher would specialise it: pointers and strides multiples of 16."""
    signature, constexprs, attrs = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            constexprs[(index,)] = constants[name]
            continue
        kind = types.get(name) or (
            "*i64" if name in INT64 else "*i32" if name in INT32
            else "*fp32" if name in FLOAT32 else "fp32" if name == "scale"
            else "i32" if name in SCALARS or name.startswith("stride_") else "*bf16"
        )  # fmt: skip
        signature[name] = kind
        if kind.startswith("*") or name.startswith("stride_"):
            attrs[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attrs)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(binary: Any, folder: Path) -> dict[str, int]:
    """Registers, bytes of spills (stack) and shared memory of a compiled kernel."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(binary.asm["cubin"])
    shown = subprocess.run(
        [TOOLS / "cuobjdump", "--dump-resource-usage", cubin],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    pairs = [p.split(":") for p in shown.split() if p.count(":") == 1 and p.split(":")[1].isdigit()]
    found = {name: int(value) for name, value in pairs}
    return {"reg": found["REG"], "stack": found["STACK"], "shared": binary.metadata.shared}


def matrix_instruction(arch: int, dtype: str) -> str:
    """Pattern of what the PTX must contain for products of queries of a dtype."""
    if dtype == "float32":
        return r"fma\.rn"
    if arch == 90:
        return rf"wgmma\.mma_async\S*\.{'s8.s8' if dtype == 'int8' else 'bf16.bf16'}"
    if arch == 100 and dtype != "int8":
        return r"tcgen05\.mma"
    return r"\bmma\.sync|tcgen05\.mma"


CASES = [
    pytest.param(kind, query, value, width, id=f"{kind} {query} {value} D{width}")
    for kind in ("dense", "sparse", "small")
    for query, value, width in (
        ("bfloat16", "bfloat16", 64),
        ("bfloat16", "bfloat16", 128),
        ("int8", "bfloat16", 64),
        ("int8", "bfloat16", 128),
        ("int8", "float8_e4m3fn", 128),
        ("float32", "float32", 64),
        ("float32", "float32", 128),
    )
]


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda a: f"sm_{a}")
@pytest.mark.parametrize(("kind", "query", "value", "width"), CASES)
def test_attention_kernel(
    kind: str, query: str, value: str, width: int, arch: int, tmp_path: Path
) -> None:
    if value == "float8_e4m3fn" and arch < 89:
        pytest.skip("e4m3 products need sm_89")
    launch = attention_launch(kind, getattr(torch, query), getattr(torch, value), width, arch)
    dense, sparse = (
        dense_attention._dense_attention_kernel,
        sparse_attention._sparse_attention_kernel,
    )
    kernel = dense if kind == "dense" else sparse
    out = "float32" if query == "float32" else "bfloat16"
    types = {"query": query, "key": query, "value": value, "out": out}
    constants = {
        "D": width,
        "BLOCK_D": padded(width),
        "BLOCK_M": launch.block_m,
        "BLOCK_N": launch.block_n,
        "QK_INT8": query == "int8",
        "PV_FP8": value == "float8_e4m3fn",
        "HAS_LSE": True,
        "SIMULATE": False,
        "stride_vd": 1 if value != "float8_e4m3fn" else 4096,
    }
    if value == "float8_e4m3fn":
        constants["stride_vs"] = 1 if kind == "dense" else width
    binary = compiled(kernel, arch, constants, {k: NAMES[v] for k, v in types.items()}, launch)
    used = resources(binary, tmp_path)
    print(f"{kind:6} QK {query:8} PV {value:13} D{width:<4} sm_{arch:<4} {launch} {used}")
    assert re.search(matrix_instruction(arch, query), binary.asm["ptx"])
    assert used["stack"] == 0, used
    assert used["reg"] <= 255
    assert used["shared"] <= ARCHITECTURES[arch]


PLANNER = {
    "kmeans assign": (
        kmeans._assign_kernel,
        {"D": 128, "BLOCK_D": 128, "BLOCK_S": 128, "BLOCK_K": 64, "SIMULATE": False},
        {},
        Launch(128, 64, 8, 3),
    ),
    "kmeans means": (
        kmeans._means_kernel,
        {"D": 128, "BLOCK_D": 128, "BLOCK_S": 32, "SQUARED": True},
        {"centroids": "*fp32"},
        Launch(0, 0, 4, 2),
    ),
    "count": (grouping._count_kernel, {"CHUNK": grouping.CHUNK}, {}, Launch(0, 0, 4, 2)),
    "scatter": (grouping._scatter_kernel, {"CHUNK": grouping.CHUNK}, {}, Launch(0, 0, 4, 2)),
    "key lists": (planner._list_kernel, {"BLOCK": 1024}, {"selected": "*u8"}, Launch(0, 0, 4, 2)),
    "int8": (
        quantize._int8_kernel,
        {"D": 128, "BLOCK_D": 128, "BLOCK_S": 32, "HAS_MEAN": True},
        {"quantized": "*i8", "scale": "*fp32"},
        Launch(0, 0, 4, 2),
    ),
    "channels": (
        quantize._channel_kernel,
        {"D": 128, "BLOCK_D": 128, "BLOCK_S": 64, "STEPS": 8},
        {"sums": "*fp32", "lows": "*fp32", "highs": "*fp32"},
        Launch(0, 0, 4, 2),
    ),
    "e4m3": (
        quantize._e4m3_kernel,
        {"D": 128, "BLOCK_D": 128, "BLOCK_S": 32, "SQUARED": True},
        {"quantized": "*fp8e4nv", "scale": "*fp32"},
        Launch(0, 0, 4, 2),
    ),
    "merge": (
        merge._merge_kernel,
        {"D": 128, "BLOCK_D": 128, "BLOCK_S": 32, "SQUARED": True},
        {},
        Launch(0, 0, 4, 2),
    ),
    "centroid attention": (
        centroid_attention._centroid_attention_kernel,
        {"D": 128, "BLOCK_D": 128, "BLOCK_M": 64, "BLOCK_N": 32, "SECOND_ORDER": True,
         "SIMULATE": False},
        {"selected": "*u8"},
        Launch(64, 32, 8, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda a: f"sm_{a}")
@pytest.mark.parametrize("name", PLANNER)
def test_planner_kernel(name: str, arch: int, tmp_path: Path) -> None:
    if name == "e4m3" and arch < 89:
        pytest.skip("e4m3 casts need sm_89")
    kernel, constants, types, launch = PLANNER[name]
    used = resources(compiled(kernel, arch, constants, types, launch), tmp_path)
    print(f"{name:20} sm_{arch:<4} {used}")
    assert used["stack"] == 0, used
    assert used["shared"] <= ARCHITECTURES[arch]
