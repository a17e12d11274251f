"""Find the fastest tile shapes on this GPU and write them to ``kernels/dit_accel_kernels/gpu/launch.json``.

``python -m dit_accel_eval.bench.tune --precision full --head-dim 128 --out launch.json`` reads the file first
and replaces only the entries that it measures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import click
import torch
from torch import Tensor
from triton.errors import TritonError

from dit_accel import SVG2
from dit_accel.errors import InvalidSettings, first_line
from dit_accel.io.atomic import atomic_write
from dit_accel.io.reading import read_json
from dit_accel_eval.bench.cases import Shape, draw_block_map, make_inputs
from dit_accel_eval.bench.measure import median_seconds
from dit_accel_kernels import ContractError, Precision, check_precision
from dit_accel_kernels.gpu.dense_attention import dense_attention
from dit_accel_kernels.gpu.launch import Launch, compute_capability
from dit_accel_kernels.gpu.quantize import Quantized, quantize, quantize_dense
from dit_accel_kernels.gpu.sparse_attention import sparse_attention

HEADS, TOKENS, DENSITY, SIGMA = 8, 16_384, 0.25, 0.5
BLOCK_M, BLOCK_N, NUM_WARPS, NUM_STAGES = (64, 128), (32, 64, 128), (4, 8), (2, 3, 5)

Attend = Callable[[Launch], Tensor]
"""A kernel that runs with the given tile shape."""


def candidate_launches() -> list[Launch]:
    """Return the tile shapes to try."""
    return [Launch(*sizes) for sizes in product(BLOCK_M, BLOCK_N, NUM_WARPS, NUM_STAGES)]


def halve(launch: Launch) -> Launch:
    """Return the tile shape for the remainders of query groups, half as high."""
    return Launch(launch.block_m // 2, launch.block_n, launch.num_warps, launch.num_stages)


def fastest_launch(attend: Attend, launches: list[Launch], device: str) -> Launch | None:
    """Return the fastest tile shape of a kernel, or None if none of them fits the device."""
    times: dict[Launch, float] = {}
    for launch in launches:
        try:
            times[launch] = median_seconds(partial(attend, launch), device, min_run_time=0.2)
        except (TritonError, RuntimeError) as refusal:
            click.echo(f"{launch}: {first_line(refusal)}")
            continue
        click.echo(f"{launch}: {1e3 * times[launch]:.3f} ms")
    return min(times, key=lambda launch: times[launch]) if times else None


def tune_launches(
    shape: Shape, precision: Precision, device: str, launches: list[Launch]
) -> Iterator[tuple[str, Launch]]:
    """Yield entries of the table: ``KIND QUERY_BYTES VALUE_BYTES HEAD_DIM`` and the fastest tile shape."""
    query, key, value = (x.transpose(1, 2) for x in make_inputs(shape, torch.bfloat16, device))
    operands = dense_operands = Quantized(query, key, value)
    if precision != "full":
        is_fp8 = precision == "int8-fp8"
        operands = quantize(query, key, value, quantize_value=is_fp8, return_lse=False)
        dense_operands = quantize_dense(query, key, value, precision, return_lse=False)
    scale = shape.head_dim**-0.5
    sizes = f"{operands.query.element_size()} {operands.value.element_size()} {shape.head_dim}"
    block_map = draw_block_map(shape, SVG2().clusters(shape.tokens), DENSITY, SIGMA, device)

    def attend_dense(launch: Launch) -> Tensor:
        out, _ = dense_attention(
            *(query, key, value),
            scale=scale,
            return_lse=False,
            quantized=dense_operands,
            launch=launch,
        )
        return out

    def attend_sparse(launch: Launch) -> Tensor:
        pair = (launch, halve(launch))
        out, _ = sparse_attention(
            query,
            key,
            value,
            block_map,
            scale=scale,
            return_lse=False,
            quantized=operands,
            launches=pair,
        )
        return out

    for kind, attend in (("dense", attend_dense), ("sparse", attend_sparse)):
        best = fastest_launch(attend, launches, device)
        if best is None:
            continue
        yield f"{kind} {sizes}", best
        if kind == "sparse":
            yield f"small {sizes}", halve(best)


def read_table(path: Path) -> dict[str, dict[str, list[int]]]:
    """Return a table of launches by capability and name.

    Raises:
        UsageError: if the file holds no such table.
    """
    try:
        table = read_json(path, "table of launches")
    except InvalidSettings as error:
        raise click.UsageError(str(error)) from None
    if not isinstance(table, dict) or not all(isinstance(row, dict) for row in table.values()):
        raise click.UsageError(f"{path} holds no table of launches: give another --out")
    return table


@click.command()
@click.option(
    "--precision",
    type=click.Choice(["full", "int8", "int8-fp8"]),
    default="full",
    show_default=True,
    help="Tune the kernels of this precision.",
)
@click.option(
    "--head-dim",
    type=click.Choice(["64", "128"]),
    default="128",
    show_default=True,
    help="Tune for this number of channels of a head.",
)
@click.option("--device", default="cuda", show_default=True, help="Measure on this GPU.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Read and update this JSON table."
)
def main(precision: Precision, head_dim: str, device: str, out: Path) -> None:
    """Time all tile shapes for one precision and one head_dim."""
    try:
        check_precision(precision, torch.device(device))
    except ContractError as error:
        raise click.UsageError(str(error)) from None
    table = read_table(out) if out.exists() else {}
    shape = Shape(HEADS, TOKENS, int(head_dim))
    arch = str(compute_capability(torch.empty(0, device=device)))
    for name, launch in tune_launches(shape, precision, device, candidate_launches()):
        entry = [launch.block_m, launch.block_n, launch.num_warps, launch.num_stages]
        table.setdefault(arch, {})[name] = entry
        click.echo(f"capability {arch}, {name}: {entry}")
        with atomic_write(out) as temporary:
            temporary.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
