"""Measure what a Hadamard rotation of queries and keys gains before they become int8.

A rotation leaves the scores as they are and spreads large channels over all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dit_accel.io.jsonl import write_json

if TYPE_CHECKING:
    from torch import Tensor

# Tokens that share a scale.
SCALES = {"token": 1, "block of 128": 128, "head": None}


def inputs() -> Iterator[tuple[str, list[Tensor]]]:
    """Yield named queries, keys and values ``[B, H, S, D]`` in float64."""
    import torch

    from dit_accel.core.ops import heads_first
    from dit_accel_assets import captures
    from dit_accel_eval.bench.capture import read_capture

    calls = [heads_first(call) for call in read_capture(captures()["tiny-world"])]
    yield "capture", [torch.cat(tensors).double() for tensors in zip(*calls, strict=True)]
    generator = torch.Generator().manual_seed(0)
    shape = (1, 4, 1024, 128)
    query, key, value = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    yield "random", [query, key, value]
    channels = torch.randperm(128, generator=generator)
    scale_query, scale_key = torch.ones(2, 128, dtype=torch.float64)
    scale_query[channels[:4]] = scale_key[channels[4:8]] = 8.0
    yield "outlier channels", [query * scale_query, key * scale_key, value]
    yield "biased outlier channels", [query * scale_query, key * scale_key + scale_key, value]


def rotate(x: Tensor, block: int) -> Tensor:
    """Multiply blocks of channels by an orthonormal Hadamard matrix; a block of 1 changes nothing."""
    import torch
    from scipy.linalg import hadamard

    matrix = torch.from_numpy(hadamard(block)).to(x.dtype) * block**-0.5
    rotated: Tensor = (x.unflatten(-1, (-1, block)) @ matrix).flatten(-2)
    return rotated


def round_shared(x: Tensor, tokens: int | None) -> Tensor:
    """Round to 255 symmetric levels with one scale for some tokens of a head; None is all of them."""
    import torch

    from dit_accel_kernels.precision import INT8_MAX

    parts = x.split(tokens or x.shape[2], dim=2)
    scales = [part.abs().amax((-2, -1), keepdim=True) / INT8_MAX for part in parts]
    return torch.cat(
        [(part / scale).round() * scale for part, scale in zip(parts, scales, strict=True)], 2
    )


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return dense attention."""
    return (query.shape[-1] ** -0.5 * query @ key.transpose(-1, -2)).softmax(-1) @ value


def measure() -> list[dict[str, Any]]:
    """Return a row for each input, kind of scale, smoothing and block of the rotation."""
    rows = []
    for name, (query, key, value) in inputs():
        exact = attend(query, key, value)
        blocks = [block for block in (1, 16, 32, 64, 128) if block <= query.shape[-1]]
        for scale, smooth, block in itertools.product(SCALES, (True, False), blocks):
            shifted = key - key.mean(2, keepdim=True) if smooth else key
            rounded = [round_shared(rotate(x, block), SCALES[scale]) for x in (query, shifted)]
            error = attend(*rounded, value) - exact
            rows.append(
                {
                    "input": name,
                    "scale per": scale,
                    "smooth keys": smooth,
                    "rotation": block,
                    "L2": round(float(error.norm() / exact.norm()), 6),
                    "L1": round(float(error.abs().sum() / exact.abs().sum()), 6),
                }
            )
    return rows


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Write the rows as JSON.")
def main(out: Path | None) -> None:
    """Print the error of attention with int8 queries and keys, relative to float64."""
    rows = measure()
    for row in rows:
        *names, second, first = row.values()
        click.echo(f"{' | '.join(map(str, names))} | {second:.5f} | {first:.5f}")
    if out:
        write_json(out, {"rows": rows})


if __name__ == "__main__":
    main()
