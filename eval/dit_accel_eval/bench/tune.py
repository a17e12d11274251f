"""Which tile shapes are fastest on this GPU: what `kernels/dit_accel_kernels/gpu/launch.json` is made of.

``python -m dit_accel_eval.bench.tune --precision full --head-dim 128 --out launch.json``; the file is
read first and only the entries measured here are replaced.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import click
import torch
from torch import Tensor
from triton.errors import TritonError

from dit_accel import SVG2
from dit_accel_eval.bench.cases import Shape, clustered, random_map
from dit_accel_eval.bench.measure import seconds
from dit_accel_kernels import ContractError, Precision, check_precision
from dit_accel_kernels.gpu.dense_attention import dense_attention
from dit_accel_kernels.gpu.launch import Launch, compute_capability
from dit_accel_kernels.gpu.quantize import Quantized, quantize
from dit_accel_kernels.gpu.sparse_attention import sparse_attention

HEADS, TOKENS, DENSITY, SIGMA = 8, 16_384, 0.25, 0.5
HEIGHTS, LENGTHS, WARPS, STAGES = (64, 128), (32, 64, 128), (4, 8), (2, 3)

Work = Callable[[], Tensor]


def candidates() -> list[Launch]:
    return [Launch(*shape) for shape in product(HEIGHTS, LENGTHS, WARPS, STAGES)]


def half(launch: Launch) -> Launch:
    """For the rests of query groups, half as high."""
    return Launch(launch.block_m // 2, launch.block_n, launch.num_warps, launch.num_stages)


def fastest(work_of: Callable[[Launch], Work], tried: list[Launch], device: str) -> Launch | None:
    """The launch whose work takes least; None if none of them fits the device."""
    times: dict[Launch, float] = {}
    for launch in tried:
        try:
            times[launch] = seconds(work_of(launch), device, least=0.2)
        except (TritonError, RuntimeError) as refusal:
            click.echo(f"{launch}: {str(refusal).splitlines()[0]}")
            continue
        click.echo(f"{launch}: {1e3 * times[launch]:.3f} ms")
    return min(times, key=lambda launch: times[launch]) if times else None


def tuned(
    shape: Shape, precision: Precision, device: str, tried: list[Launch]
) -> Iterator[tuple[str, Launch]]:
    """Entries of the table: ``kind bytes-of-Q bytes-of-V head_dim`` and the launch."""
    query, key, value = (x.transpose(1, 2) for x in clustered(shape, torch.bfloat16, device))
    given = Quantized(query, key, value)
    if precision != "full":
        given = quantize(
            query, key, value, quantize_value=precision == "int8-fp8", return_lse=False
        )
    scale = shape.head_dim**-0.5
    sizes = f"{given.query.element_size()} {given.value.element_size()} {shape.head_dim}"
    block_map = random_map(shape, SVG2().clusters(shape.tokens), DENSITY, SIGMA, device)

    def dense(launch: Launch) -> Work:
        return lambda: dense_attention(
            query, key, value, scale=scale, return_lse=False, quantized=given, launch=launch
        )[0]

    def sparse(launch: Launch) -> Work:
        return lambda: sparse_attention(
            *(query, key, value, block_map),
            scale=scale,
            return_lse=False,
            quantized=given,
            launches=(launch, half(launch)),
        )[0]

    for kind, work_of in (("dense", dense), ("sparse", sparse)):
        best = fastest(work_of, tried, device)
        if best is None:
            continue
        yield f"{kind} {sizes}", best
        if kind == "sparse":
            yield f"small {sizes}", half(best)


@click.command()
@click.option(
    "--precision",
    type=click.Choice(["full", "int8", "int8-fp8"]),
    default="full",
    show_default=True,
)
@click.option("--head-dim", type=click.Choice(["64", "128"]), default="128", show_default=True)
@click.option("--device", default="cuda", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(precision: Precision, head_dim: str, device: str, out: Path) -> None:
    """Time all tile shapes for one precision and head_dim."""
    try:
        check_precision(precision, torch.device(device))
    except ContractError as error:
        raise click.UsageError(str(error)) from None
    table = json.loads(out.read_text()) if out.exists() else {}
    shape = Shape(HEADS, TOKENS, int(head_dim))
    arch = str(compute_capability(torch.empty(0, device=device)))
    for name, launch in tuned(shape, precision, device, candidates()):
        entry = [launch.block_m, launch.block_n, launch.num_warps, launch.num_stages]
        table.setdefault(arch, {})[name] = entry
        click.echo(f"capability {arch}, {name}: {entry}")
        temporary = out.with_suffix(".part")
        temporary.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n")
        temporary.replace(out)


if __name__ == "__main__":
    main()
