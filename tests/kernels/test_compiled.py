"""Compile every kernel ahead of time for six architectures, without a GPU.

The tests check the matrix instruction, that no register spills, that shared memory fits, and that no loop got
longer. They print the resources of each kernel (``pytest -rP``).
"""

import json
import re
from pathlib import Path

import pytest
import torch
import triton

from dit_accel_eval.bench import instructions
from dit_accel_eval.bench.compiled import (
    ARCHITECTURES,
    FP8,
    attention_case,
    compile_case,
    measure_resources,
    other_cases,
)

TABLES = json.loads((Path(__file__).parents[2] / "eval/results/instructions.json").read_text())
TABLE = TABLES.get(triton.__version__, {})
ARCHS = pytest.mark.parametrize(
    "arch",
    [pytest.param(a, marks=[pytest.mark.slow] if a in (86, 100) else []) for a in ARCHITECTURES],
    ids=lambda a: f"sm_{a}",
)


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
    ("dense", "bfloat16", "bfloat16", 128),
    ("dense", "int8", FP8, 128),
    ("sparse and stand-ins", "bfloat16", "bfloat16", 64),
    ("sparse and stand-ins", "bfloat16", "bfloat16", 128),
    ("sparse and stand-ins", "int8", "bfloat16", 128),
    ("sparse and stand-ins", "int8", FP8, 128),
    ("small and stand-ins", "bfloat16", "bfloat16", 128),
}
KINDS = ("dense", "sparse", "small", "sparse and stand-ins", "small and stand-ins")
OPERANDS = (
    ("bfloat16", "bfloat16", 64),
    ("bfloat16", "bfloat16", 128),
    ("int8", "bfloat16", 64),
    ("int8", "bfloat16", 128),
    ("int8", FP8, 64),
    ("int8", FP8, 128),
    ("float32", "float32", 64),
    ("float32", "float32", 128),
    ("int8", "float32", 128),
    ("bfloat16", "bfloat16", 72),
    ("bfloat16", "bfloat16", 88),
    ("int8", FP8, 72),
    ("bfloat16", "bfloat16", 256),
    ("int8", FP8, 256),
    ("float32", "float32", 256),
)
CASES = [
    pytest.param(
        *(kind, *operands),
        id=f"{kind} {operands[0]} {operands[1]} D{operands[2]}",
        marks=[] if (kind, *operands) in USUAL else pytest.mark.slow,
    )
    for kind in KINDS
    for operands in OPERANDS
]


# Bytes of spills that are known to lie outside the loop over keys. Tiles without them issue 45 % more there.
SPILLS = {
    ("sparse and stand-ins", "int8", FP8, 128, 100): 48,
    ("small and stand-ins", "int8", FP8, 128, 100): 32,
}


@ARCHS
@pytest.mark.parametrize(("kind", "query", "value", "head_dim"), CASES)
def test_attention_kernel(kind: str, query: str, value: str, head_dim: int, arch: int) -> None:
    name, _, skipped = kind.partition(" ")
    case = attention_case(name, query, value, head_dim, arch, skipped=bool(skipped))
    if not instructions.can_compile(case, arch):
        pytest.skip("e4m3 products need sm_89")
    binary = compile_case(case, arch)
    used = measure_resources(binary)
    print(f"{case.name} D{head_dim} sm_{arch} {case.launch} {used}")
    assert re.search(matrix_instruction(arch, query, case.launch.block_m), binary.asm["ptx"])
    if head_dim in (64, 128):
        assert used["spilled"] <= SPILLS.get((kind, query, value, head_dim, arch), 0), used
    assert used["registers"] <= 255
    assert used["shared"] <= ARCHITECTURES[arch]


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda a: f"sm_{a}")
@pytest.mark.parametrize("name", [case.name for case in other_cases(128, 90)])
def test_other_kernel(name: str, arch: int) -> None:
    case = next(case for case in other_cases(128, arch) if case.name == name)
    if not instructions.can_compile(case, arch):
        pytest.skip("e4m3 casts need sm_89")
    used = measure_resources(compile_case(case, arch))
    print(f"{name:20} sm_{arch:<4} {used}")
    assert used["spilled"] == 0, used
    assert used["shared"] <= ARCHITECTURES[arch]


@pytest.mark.parametrize("arch", [86, 90], ids=lambda a: f"sm_{a}")
@pytest.mark.parametrize("head_dim", [64, 72, 88, 256], ids=lambda d: f"D{d}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["k-means assign", "expand groups"])
def test_other_widths_fit_shared_memory(
    name: str, dtype: torch.dtype, head_dim: int, arch: int
) -> None:
    cases = other_cases(head_dim, arch, str(dtype).removeprefix("torch."))
    case = next(case for case in cases if case.name == name)
    used = measure_resources(compile_case(case, arch))
    print(f"{name:20} {dtype} D{head_dim:<4} sm_{arch:<4} {case.launch} {used}")
    assert used["shared"] <= ARCHITECTURES[arch]


FAST = {
    f"sm_90 D128 {name}"
    for name in (
        f"dense int8 {FP8}",
        "sparse bfloat16 bfloat16 and stand-ins",
        f"sparse int8 {FP8}",
        "k-means assign",
        "expand groups",
    )
}


@pytest.mark.skipif(not TABLE, reason=f"no table for Triton {triton.__version__}")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in sorted(TABLE)]
)
def test_loops_are_as_long_as_measured(name: str) -> None:
    """A change that makes a kernel longer or takes more memory must change the table, too."""
    (found,) = (row for n, row in instructions.make_table(name).items() if n == name)
    assert found == TABLE[name], "python -m dit_accel_eval.bench.instructions writes the table"


def test_loops_and_kinds_are_found_in_code() -> None:
    """Read a listing with an outer loop, an inner loop with a product, and a loop without one."""
    listing = """
.L_x_0:
        /*0000*/                   MOV R1, c[0x0] ;
.L_x_1:
        /*0010*/              @!P0 HGMMA.64x64x16.F32.BF16 R24, R4 ;
        /*0020*/                   FMUL R2, R3, R4 ;
        /*0030*/               @P1 BRA `(.L_x_1) ;
        /*0040*/                   BRA `(.L_x_0) ;
.L_x_2:
        /*0050*/                   FADD R2, R3, R4 ;
        /*0060*/               @P1 BRA `(.L_x_2) ;
"""
    assert instructions.find_loops(listing) == [["HGMMA.64x64x16.F32.BF16", "FMUL", "BRA"]]
