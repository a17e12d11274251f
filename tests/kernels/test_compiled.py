"""Compile every kernel ahead of time for six architectures, without a GPU.

The tests check the matrix instruction, that no register spills, and that shared memory fits. They print
the resources of each kernel (``pytest -rP``).
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
from dit_accel_kernels.gpu.launch import Launch, pad_to_power_of_two, select_launch
from dit_accel_kernels.precision import ROTATION_LEVELS

# Bytes of shared memory by compute capability.
ARCHITECTURES = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
# Types of pointers by name, bfloat16 by default.
INT64 = {"q_order_ptr", "q_offsets_ptr", "k_order_ptr", "k_offsets_ptr", "order_ptr"}
INT64 |= {"offsets_ptr", "labels_ptr"}
INT32 = {"tile_start_ptr", "tile_group_ptr", "k_list_ptr", "k_count_ptr", "packed_start_ptr"}
INT32 |= {"k_labels_ptr", "ranks_ptr", "counts_ptr", "starts_ptr"}
FLOAT32 = {"lse_ptr", "first_lse_ptr", "second_lse_ptr", "q_scale_ptr", "k_scale_ptr"}
FLOAT32 |= {"v_scale_ptr", "v_mean_ptr", "half_norm_ptr", "log_size_ptr", "mean_ptr", "means_ptr"}
TYPES = {"float32": "*fp32", "bfloat16": "*bf16", "int8": "*i8", "float8_e4m3fn": "*fp8e4nv"}


def argument_type(name: str) -> str:
    """Return the Triton type of a kernel argument."""
    if not name.endswith("_ptr"):
        return "fp32" if name == "sm_scale" else "i32"
    if name in INT64:
        return "*i64"
    if name in INT32:
        return "*i32"
    return "*fp32" if name in FLOAT32 else "*bf16"


def compile_kernel(
    kernel: Any, arch: int, constants: dict[str, Any], types: dict[str, str], launch: Launch
):
    """Compile a kernel as its launcher specialises it: pointers and strides are multiples of 16.

    The stride of a head in a ``[B, S, H, D]`` tensor is the head_dim.
    """
    head_dim = constants.get("HEAD_DIM", 128)
    signature, constexprs, attrs = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            constexprs[(index,)] = constants[name]
            continue
        signature[name] = types.get(name) or argument_type(name)
        is_odd = head_dim % 16 and name in ("stride_qh", "stride_kh", "stride_vh", "stride_xh")
        if name.endswith("_ptr") or (name.startswith("stride_") and not is_odd):
            attrs[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attrs)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def measure_resources(binary: Any, folder: Path) -> dict[str, int]:
    """Return registers, bytes of spills (stack) and shared memory of a compiled kernel."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(binary.asm["cubin"])
    output = subprocess.run(
        [TOOLS / "cuobjdump", "--dump-resource-usage", cubin],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    usage = dict(re.findall(r"(\w+):(\d+)(?=\s)", output))
    return {
        "reg": int(usage["REG"]),
        "stack": int(usage["STACK"]),
        "shared": binary.metadata.shared,
    }


def matrix_instruction(arch: int, dtype: str, rows: int) -> str:
    """Return a pattern that the PTX must contain for products of queries of a dtype.

    The instructions of four warps take 64 rows. Smaller tiles use those of single warps.
    """
    if dtype == "float32":
        return r"fma\.rn"
    if rows < 64:
        return r"\bmma\.sync"
    if arch == 90:
        return rf"wgmma\.mma_async\S*\.{'s8.s8' if dtype == 'int8' else 'bf16.bf16'}"
    if arch == 100 and dtype != "int8":
        return r"tcgen05\.mma"
    return r"\bmma\.sync|tcgen05\.mma"


# Compiling takes seconds a case. Other dtypes and widths are compiled by `make test-all`.
USUAL = {
    ("bfloat16", "bfloat16", 64),
    ("bfloat16", "bfloat16", 128),
    ("int8", "bfloat16", 128),
    ("int8", "float8_e4m3fn", 128),
}
CASES = [
    pytest.param(
        *(kind, query, value, head_dim),
        id=f"{kind} {query} {value} D{head_dim}",
        marks=[] if (query, value, head_dim) in USUAL else pytest.mark.slow,
    )
    for kind in ("dense", "sparse", "small")
    for query, value, head_dim in (
        ("bfloat16", "bfloat16", 64),
        ("bfloat16", "bfloat16", 128),
        ("int8", "bfloat16", 64),
        ("int8", "bfloat16", 128),
        ("int8", "float8_e4m3fn", 128),
        ("float32", "float32", 64),
        ("float32", "float32", 128),
        ("int8", "float32", 128),
        ("bfloat16", "bfloat16", 72),
        ("bfloat16", "bfloat16", 88),
        ("bfloat16", "bfloat16", 256),
        ("int8", "float8_e4m3fn", 256),
        ("float32", "float32", 256),
    )
]


@pytest.mark.parametrize(
    "arch",
    [pytest.param(a, marks=[pytest.mark.slow] if a in (86, 100) else []) for a in ARCHITECTURES],
    ids=lambda a: f"sm_{a}",
)
@pytest.mark.parametrize(("kind", "query", "value", "head_dim"), CASES)
def test_attention_kernel(
    kind: str, query: str, value: str, head_dim: int, arch: int, tmp_path: Path
) -> None:
    if value == "float8_e4m3fn" and arch < 89:
        pytest.skip("e4m3 products need sm_89")
    dtypes = getattr(torch, query), getattr(torch, value)
    launch = select_launch(kind, *dtypes, head_dim, arch)
    kernel = sparse_attention._sparse_attention_fwd_kernel
    if kind == "dense":
        kernel = dense_attention._dense_attention_fwd_kernel
    out = "float32" if value == "float32" else "bfloat16"
    types = {"q_ptr": query, "k_ptr": query, "v_ptr": value, "out_ptr": out}
    is_fp8 = value == "float8_e4m3fn"
    constants = {
        "HEAD_DIM": head_dim,
        "BLOCK_D": pad_to_power_of_two(head_dim),
        "BLOCK_M": launch.block_m,
        "BLOCK_N": launch.block_n,
        "QK_INT8": query == "int8",
        "PV_FP8": is_fp8,
        "KEYS_PER_SCALE": 1,
        "TAIL_MASK": launch.tail_mask,
        "WIDE": not launch.narrow_offsets,
        "HAS_LSE": True,
        "SIMULATE": False,
        "stride_vd": 4096 if is_fp8 else 1,
    }
    if is_fp8:
        constants["stride_vs"] = 1 if kind == "dense" else head_dim
    triton_types = {name: TYPES[dtype] for name, dtype in types.items()}
    binary = compile_kernel(kernel, arch, constants, triton_types, launch)
    used = measure_resources(binary, tmp_path)
    print(f"{kind:6} QK {query:8} PV {value:13} D{head_dim:<4} sm_{arch:<4} {launch} {used}")
    assert re.search(matrix_instruction(arch, query, launch.block_m), binary.asm["ptx"])
    if head_dim <= 128:
        assert used["stack"] == 0, used
    assert used["reg"] <= 255
    assert used["shared"] <= ARCHITECTURES[arch]


def with_head_dim(**constants: Any) -> dict[str, Any]:
    """Return the constants of a kernel together with a head_dim of 128."""
    return {"HEAD_DIM": 128, "BLOCK_D": 128, **constants}


DEFAULT_LAUNCH = Launch(0, 0, num_warps=4, num_stages=2)
# Kernel, constants, types of pointers, and launch by name.
OTHER_KERNELS = {
    "kmeans assign": (
        kmeans._kmeans_assign_kernel,
        with_head_dim(BLOCK_S=128, BLOCK_K=64, LANE_ARGMAX=True, SIMULATE=False),
        {},
        Launch(128, 64, num_warps=8, num_stages=3),
    ),
    "kmeans update": (
        kmeans._kmeans_update_kernel,
        with_head_dim(BLOCK_S=32, SQUARED=True),
        {"centroids_ptr": "*fp32"},
        DEFAULT_LAUNCH,
    ),
    "count labels": (
        grouping._count_labels_kernel,
        {"CHUNK": grouping.CHUNK},
        {},
        DEFAULT_LAUNCH,
    ),
    "scatter tokens": (
        grouping._scatter_tokens_kernel,
        {"CHUNK": grouping.CHUNK},
        {},
        DEFAULT_LAUNCH,
    ),
    "key lists": (
        planner._key_lists_kernel,
        {"BLOCK_S": planner.BLOCK_S},
        {"selected_ptr": "*u8"},
        DEFAULT_LAUNCH,
    ),
    "quantize int8": (
        quantize._quantize_int8_kernel,
        with_head_dim(BLOCK_S=quantize.BLOCK_S, HAS_MEAN=True, LEVELS=ROTATION_LEVELS),
        {"quantized_ptr": "*i8", "scale_ptr": "*fp32"},
        DEFAULT_LAUNCH,
    ),
    "channel stats": (
        quantize._channel_stats_kernel,
        with_head_dim(BLOCK_S=64, STEPS=8),
        {"sum_ptr": "*fp32", "min_ptr": "*fp32", "max_ptr": "*fp32"},
        DEFAULT_LAUNCH,
    ),
    "quantize e4m3": (
        quantize._quantize_e4m3_kernel,
        with_head_dim(BLOCK_S=quantize.BLOCK_S),
        {"quantized_ptr": "*fp8e4nv", "scale_ptr": "*fp32"},
        DEFAULT_LAUNCH,
    ),
    "merge attention": (
        merge._merge_attention_kernel,
        with_head_dim(BLOCK_M=merge.BLOCK_M),
        {},
        DEFAULT_LAUNCH,
    ),
    "centroid attention": (
        centroid_attention._centroid_attention_fwd_kernel,
        with_head_dim(BLOCK_M=64, BLOCK_N=32, SIMULATE=False),
        {"selected_ptr": "*u8"},
        Launch(64, 32, num_warps=4, num_stages=2),
    ),
}


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda a: f"sm_{a}")
@pytest.mark.parametrize("name", OTHER_KERNELS)
def test_other_kernel(name: str, arch: int, tmp_path: Path) -> None:
    if name == "quantize e4m3" and arch < 89:
        pytest.skip("e4m3 casts need sm_89")
    kernel, constants, types, launch = OTHER_KERNELS[name]
    used = measure_resources(compile_kernel(kernel, arch, constants, types, launch), tmp_path)
    print(f"{name:20} sm_{arch:<4} {used}")
    assert used["stack"] == 0, used
    assert used["shared"] <= ARCHITECTURES[arch]


@pytest.mark.parametrize("arch", [86, 90], ids=lambda a: f"sm_{a}")
@pytest.mark.parametrize("head_dim", [64, 72, 128, 256], ids=lambda d: f"D{d}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["kmeans assign", "centroid attention"])
def test_other_widths_fit_shared_memory(
    name: str, dtype: torch.dtype, head_dim: int, arch: int, tmp_path: Path
) -> None:
    kernel, constants, types, _ = OTHER_KERNELS[name]
    block_d = pad_to_power_of_two(head_dim)
    if name == "kmeans assign":
        launch = kmeans.select_assign_launch(dtype, block_d)
        sizes = {"BLOCK_S": launch.block_m, "BLOCK_K": launch.block_n}
    else:
        launch = centroid_attention.select_centroid_launch(dtype, block_d)
        sizes = {"BLOCK_M": launch.block_m, "BLOCK_N": launch.block_n}
    constants = {**constants, "HEAD_DIM": head_dim, "BLOCK_D": block_d, **sizes}
    names = {x for x in kernel.arg_names if x.endswith("_ptr") and argument_type(x) == "*bf16"}
    pointer = "*bf16" if dtype == torch.bfloat16 else "*fp32"
    types = dict.fromkeys(names, pointer) | types
    used = measure_resources(compile_kernel(kernel, arch, constants, types, launch), tmp_path)
    print(f"{name:20} {dtype} D{head_dim:<4} sm_{arch:<4} {launch} {used}")
    assert used["shared"] <= ARCHITECTURES[arch]
