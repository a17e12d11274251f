"""Count the instructions of every kernel's loops by compiling it: ``python -m dit_accel_eval.bench.instructions``.

A loop that issues fewer instructions for a tile is faster where issue limits it. The count needs no GPU, so a
change that makes a loop longer is seen on any machine.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import triton

from dit_accel_eval.bench.compiled import (
    ARCHITECTURES,
    FP8,
    Case,
    attention_case,
    compile_case,
    measure_resources,
    other_cases,
    run_tool,
)
from dit_accel_kernels.gpu.launch import Kind

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([\w.]+)(.*?);")
LABEL = re.compile(r"^(\.L_\w+):")
MATRIX = {"HGMMA", "IGMMA", "QGMMA", "HMMA", "IMMA", "QMMA", "UTCHMMA", "UTCIMMA", "UTCQMMA"}
# The tile that issue cycles are given for, and the schedulers of a multiprocessor.
TILE = (128, 64)
SCHEDULERS = 4
HEAD_DIMS = (64, 128)
PRECISIONS = {
    "bf16": ("bfloat16", "bfloat16"),
    "int8": ("int8", "bfloat16"),
    "int8-fp8": ("int8", FP8),
}


def find_loops(sass: str) -> list[list[str]]:
    """Return the opcodes of the innermost loops that multiply matrices, in the order of the code."""
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in sass.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(opcodes)
        elif found := INSTRUCTION.match(line):
            opcodes.append(found[1])
            target = re.search(r"\.L_\w+", found[2]) if found[1].startswith("BRA") else None
            if target and target[0] in labels:
                loops.append((labels[target[0]], len(opcodes)))
    loops = [x for x in loops if any(op.split(".")[0] in MATRIX for op in opcodes[slice(*x)])]
    inner = [x for x in loops if not any(x != y and x[0] <= y[0] and y[1] <= x[1] for y in loops)]
    return [opcodes[first:last] for first, last in sorted(inner)]


def describe_loop(opcodes: list[str], case: Case) -> dict[str, Any]:
    """Return the number of instructions of a loop by kind, and its issue cycles for a tile."""
    kinds = Counter(op.split(".")[0] for op in opcodes)
    share = case.launch.block_m * case.launch.block_n / (TILE[0] * TILE[1])
    return {
        "instructions": len(opcodes),
        "issue": round(len(opcodes) * case.launch.num_warps / SCHEDULERS / share),
        "kinds": dict(kinds.most_common()),
    }


def describe(case: Case, arch: int) -> dict[str, Any]:
    """Compile a kernel, and return its launch, its resources, its length and its loops."""
    binary = compile_case(case, arch)
    sass = run_tool(binary, "nvdisasm", "-c")
    launch = case.launch
    shape = [launch.block_m, launch.block_n, launch.num_warps, launch.num_stages]
    return {
        "launch": shape,
        **measure_resources(binary),
        "instructions": sum(INSTRUCTION.match(line) is not None for line in sass.splitlines()),
        "loops": [describe_loop(loop, case) for loop in find_loops(sass)],
    }


def table_cases(arch: int, head_dim: int) -> Iterator[Case]:
    """Return all kernels of a compute capability and a head_dim."""
    for kind in get_args(Kind):
        for query, value in PRECISIONS.values():
            yield attention_case(kind, query, value, head_dim, arch)
            if kind != "dense":
                yield attention_case(kind, query, value, head_dim, arch, skipped=True)
    yield from other_cases(head_dim, arch)


def can_compile(case: Case, arch: int) -> bool:
    """Return False for e4m3 values below compute capability 8.9."""
    return arch >= 89 or not case.needs_fp8


def entry_name(case: Case, arch: int, head_dim: int) -> str:
    """Return the key of a kernel in the table."""
    return f"sm_{arch} D{head_dim} {case.name}"


def make_table(only: str = "") -> dict[str, Any]:
    """Return the description of every kernel whose key contains a text."""
    table = {}
    for arch in ARCHITECTURES:
        for head_dim in HEAD_DIMS:
            for case in table_cases(arch, head_dim):
                name = entry_name(case, arch, head_dim)
                if only in name and can_compile(case, arch):
                    table[name] = describe(case, arch)
    return table


def format_tables(tables: dict[str, dict[str, Any]]) -> str:
    """Return tables by version of Triton as JSON with a line for each kernel."""
    versions = []
    for version, table in sorted(tables.items()):
        rows = [f" {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(table.items())]
        versions.append(f"{json.dumps(version)}: {{\n" + ",\n".join(rows) + "\n}")
    return "{" + ",\n".join(versions) + "}\n"


@click.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--only", default="", help="Compile only kernels whose key contains this text.")
def main(out: Path, only: str) -> None:
    """Compile the kernels, and write their figures to OUT under the version of Triton."""
    tables = json.loads(out.read_text()) if out.exists() else {}
    table = make_table(only)
    tables[triton.__version__] = {**tables.get(triton.__version__, {}), **table}
    out.write_text(format_tables(tables))
    for name, row in table.items():
        loops = ", ".join(f"{x['instructions']} ({x['issue']})" for x in row["loops"])
        figures = f"{row['registers']:3} registers, {row['spilled']} spilled, {row['shared']} B"
        click.echo(f"{name:60} {row['launch']!s:18} {figures}, loops {loops}")


if __name__ == "__main__":
    main()
