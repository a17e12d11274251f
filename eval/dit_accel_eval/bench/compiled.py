"""Compile the kernels ahead of time, as their launchers specialise them. No GPU is needed, only Triton."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dit_accel_kernels.gpu import (
    dense_attention,
    grouping,
    kmeans,
    merge,
    planner,
    quantize,
    sparse_attention,
    stand_ins,
)
from dit_accel_kernels.gpu.launch import Kind, Launch, pad_to_power_of_two, select_launch
from dit_accel_kernels.precision import DENSE_KEYS_PER_SCALE, rotation_levels

# Bytes of shared memory by compute capability.
ARCHITECTURES = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
FP8 = "float8_e4m3fn"
# Types of pointers by name, bfloat16 by default.
INT64 = {"q_order_ptr", "q_offsets_ptr", "k_order_ptr", "k_offsets_ptr", "order_ptr"}
INT64 |= {"offsets_ptr", "labels_ptr"}
INT32 = {"tile_start_ptr", "tile_group_ptr", "k_list_ptr", "k_count_ptr", "packed_start_ptr"}
INT32 |= {"k_labels_ptr", "ranks_ptr", "counts_ptr", "before_ptr"}
FLOAT32 = {"lse_ptr", "first_lse_ptr", "second_lse_ptr", "q_scale_ptr", "k_scale_ptr", "bias_ptr"}
FLOAT32 |= {"v_scale_ptr", "v_mean_ptr", "half_norm_ptr", "mean_ptr", "means_ptr", "k_mean_ptr"}
FLOAT32 |= {"stand_bias_ptr", "scale_ptr", "sum_ptr", "min_ptr", "max_ptr"}
TYPES = {"float32": "*fp32", "bfloat16": "*bf16", "int8": "*i8", FP8: "*fp8e4nv"}
# Numbers that are no multiple of 16 in general. Kernels that specialise on them say so here.
SIZES = {"seq_len", "num_clusters", "num_chunks", "num_rows", "num_heads", "k_len", "q_len"}
SIZES |= {"num_q_groups", "num_k_groups", "num_tiles", "num_groups"}


@dataclass(frozen=True)
class Case:
    """One kernel with its compile-time constants.

    Attributes:
        name: Name in tables.
        kernel: The kernel.
        launch: Tile shape, warps and stages.
        constants: Compile-time constants.
        types: Types of pointers that do not have the usual one.
    """

    name: str
    kernel: Any
    launch: Launch
    constants: dict[str, Any]
    types: dict[str, str] = field(default_factory=dict)

    @property
    def needs_fp8(self) -> bool:
        """Return True if the kernel works on e4m3 values, which need compute capability 8.9."""
        return TYPES[FP8] in self.types.values()


def argument_type(name: str) -> str:
    """Return the Triton type of a kernel argument."""
    if not name.endswith("_ptr"):
        return "fp32" if name == "sm_scale" else "i32"
    if name in INT64:
        return "*i64"
    if name in INT32:
        return "*i32"
    return "*fp32" if name in FLOAT32 else "*bf16"


def compile_case(case: Case, arch: int) -> Any:
    """Compile a kernel for a compute capability: pointers and strides are multiples of 16.

    The stride of a head in a ``[B, S, H, D]`` tensor is the head_dim.
    """
    head_dim = case.constants.get("HEAD_DIM", 128)
    signature, constexprs, attrs = {}, {}, {}
    for index, name in enumerate(case.kernel.arg_names):
        if name in case.constants:
            signature[name] = "constexpr"
            constexprs[(index,)] = case.constants[name]
            continue
        signature[name] = case.types.get(name) or argument_type(name)
        is_odd = head_dim % 16 and name in ("stride_qh", "stride_kh", "stride_vh", "stride_xh")
        if name not in SIZES and name != "sm_scale" and not is_odd:
            attrs[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=constexprs, attrs=attrs)
    options = {"num_warps": case.launch.num_warps, "num_stages": case.launch.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def run_tool(binary: Any, tool: str, *flags: str) -> str:
    """Return what one of Triton's tools prints about a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(binary.asm["cubin"])
        cubin.flush()
        command = [str(TOOLS / tool), *flags, cubin.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def measure_resources(binary: Any) -> dict[str, int]:
    """Return registers, bytes of spills (stack) and bytes of shared memory of a compiled kernel."""
    printed = run_tool(binary, "cuobjdump", "--dump-resource-usage")
    usage = dict(re.findall(r"(\w+):(\d+)(?=\s)", printed))
    return {
        "registers": int(usage["REG"]),
        "spilled": int(usage["STACK"]),
        "shared": binary.metadata.shared,
    }


def attention_case(
    kind: Kind,
    query: str,
    value: str,
    head_dim: int,
    arch: int,
    *,
    skipped: bool = False,
    launch: Launch | None = None,
    keys_per_scale: int | None = None,
) -> Case:
    """Return an attention kernel as the launch table sets it.

    Args:
        kind: ``dense``, ``sparse`` or ``small``.
        query, value: Names of the dtypes that are multiplied.
        head_dim: Channels of a head.
        arch: Compute capability.
        skipped: Attend to stand-ins, too.
        launch: Another launch than that of the table.
        keys_per_scale: Keys that share a scale, as the quantizer sets it by default.
    """
    dtypes = getattr(torch, query), getattr(torch, value)
    if launch is None:
        launch = select_launch(kind, *dtypes, head_dim, arch, stand_ins=skipped)
    is_fp8, is_dense = value == FP8, kind == "dense"
    if keys_per_scale is None:
        keys_per_scale = DENSE_KEYS_PER_SCALE["int8-fp8"] if is_fp8 and is_dense else 1
    out = "float32" if value == "float32" else "bfloat16"
    dtype_of = {"q_ptr": query, "k_ptr": query, "v_ptr": value, "out_ptr": out}
    dtype_of |= {"full_q_ptr": out, "stand_k_ptr": out, "stand_v_ptr": out}
    constants = {
        "HEAD_DIM": head_dim,
        "BLOCK_D": pad_to_power_of_two(head_dim, 32),
        "BLOCK_M": launch.block_m,
        "BLOCK_N": launch.block_n,
        "QK_INT8": query == "int8",
        "PV_FP8": is_fp8,
        "KEYS_PER_SCALE": keys_per_scale,
        "TAIL_MASK": launch.tail_mask,
        "WIDE": not launch.narrow_offsets,
        "HAS_LSE": True,
        "SIMULATE": False,
    }
    if not is_dense:
        constants["HAS_STAND_INS"] = skipped
        constants["BLOCK_STAND"] = min(launch.block_n, stand_ins.MAX_BLOCK_STAND)
    if is_dense:
        constants |= {"stride_vs": 1} if is_fp8 else {"stride_vd": 1}
    names = {True: dense_attention._dense_attention_fwd_kernel}
    kernel = names.get(is_dense, sparse_attention._sparse_attention_fwd_kernel)
    types = {n: TYPES[d] for n, d in dtype_of.items() if n in kernel.arg_names}
    name = f"{kind} {query} {value}" + (" and stand-ins" if skipped else "")
    return Case(name, kernel, launch, constants, types)


def other_cases(head_dim: int, arch: int, dtype: str = "bfloat16") -> Iterator[Case]:
    """Return the kernels around attention."""
    block_d = pad_to_power_of_two(head_dim)
    width = {"HEAD_DIM": head_dim, "BLOCK_D": block_d}
    torch_dtype, plain = getattr(torch, dtype), Launch(0, 0, num_warps=4, num_stages=2)

    def tensors(kernel: Any) -> dict[str, str]:
        pointers = {n for n in kernel.arg_names if n.endswith("_ptr")}
        return {n: TYPES[dtype] for n in pointers if argument_type(n) == "*bf16"}

    assign = kmeans.select_assign_launch(torch_dtype, block_d, arch)
    yield Case(
        "k-means assign",
        kmeans._kmeans_assign_kernel,
        assign,
        {**width, "BLOCK_S": assign.block_m, "BLOCK_K": assign.block_n}
        | {"LANE_ARGMAX": True, "SIMULATE": False},
        tensors(kmeans._kmeans_assign_kernel),
    )
    expand = stand_ins.select_expansion_launch(torch_dtype, block_d)
    kernel = stand_ins._expand_groups_kernel
    yield Case(
        "expand groups",
        kernel,
        expand,
        {**width, "BLOCK_M": expand.block_m, "BLOCK_N": expand.block_n}
        | {"HAS_MEAN": True, "WIDE": False, "SIMULATE": False},
        tensors(kernel) | {"selected_ptr": "*u8"},
    )
    kernel = kmeans._kmeans_update_kernel
    update = {**width, "BLOCK_S": 32, "SQUARED": True}
    yield Case(
        "k-means update", kernel, plain, update, tensors(kernel) | {"centroids_ptr": "*fp32"}
    )
    kernel = merge._merge_attention_kernel
    yield Case("merge", kernel, plain, {**width, "BLOCK_M": merge.BLOCK_M}, tensors(kernel))
    if dtype == "bfloat16":
        yield from quantizer_cases(width)
        yield from index_cases()


def quantizer_cases(width: dict[str, Any]) -> Iterator[Case]:
    """Return the kernels that quantize inputs of a head_dim, given by its constants."""
    plain = Launch(0, 0, num_warps=4, num_stages=2)
    rotation = {"HAS_MEAN": True, "SHARED": False, "LEVELS": rotation_levels(width["HEAD_DIM"])}
    kernel = quantize._quantize_int8_kernel
    yield Case(
        "quantize int8",
        kernel,
        plain,
        {**width, "BLOCK_S": quantize.BLOCK_S, **rotation},
        {"quantized_ptr": "*i8"},
    )
    kernel = quantize._channel_stats_kernel
    yield Case("channel stats", kernel, plain, {**width, "BLOCK_S": 64, "STEPS": 8})
    kernel = quantize._quantize_e4m3_kernel
    yield Case(
        "quantize e4m3",
        kernel,
        plain,
        {**width, "BLOCK_S": quantize.BLOCK_S, "TRANSPOSED": False},
        {"quantized_ptr": TYPES[FP8]},
    )
    wide = Launch(0, 0, num_warps=8, num_stages=2)
    yield Case(
        "quantize int8, shared scale",
        quantize._quantize_int8_kernel,
        wide,
        {**width, "BLOCK_S": DENSE_KEYS_PER_SCALE["int8-fp8"], **rotation, "SHARED": True},
        {"quantized_ptr": "*i8"},
    )
    yield Case(
        "quantize e4m3, transposed",
        kernel,
        wide,
        {**width, "BLOCK_S": quantize.VALUE_MULTIPLE, "TRANSPOSED": True},
        {"quantized_ptr": TYPES[FP8]},
    )


def index_cases() -> Iterator[Case]:
    """Return the kernels that sort and list tokens, which know no head_dim."""
    plain = Launch(0, 0, num_warps=4, num_stages=2)
    for name, kernel in (
        ("count labels", grouping._count_labels_kernel),
        ("scatter tokens", grouping._scatter_tokens_kernel),
    ):
        yield Case(name, kernel, plain, {"CHUNK": grouping.CHUNK})
    lists = {"BLOCK_S": planner.BLOCK_S}
    yield Case("key lists", planner._key_lists_kernel, plain, lists, {"selected_ptr": "*u8"})
