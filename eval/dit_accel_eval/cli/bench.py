"""``dit-accel bench``: time attention, measure the cost model's rates, capture and replay attention calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dit_accel.cli.options import model_options
from dit_accel.errors import InvalidSettings
from dit_accel.extensions import require_extra
from dit_accel.io.parsing import parse_integers

if TYPE_CHECKING:
    from dit_accel.generation.settings import RenderSettings
    from dit_accel_eval.bench.run import BenchSettings

HIDDEN = ("key", "missing")


@click.group("bench")
def command() -> None:
    """Measure the time and the error of attention."""


def timing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of all timing commands."""
    options = [
        click.option(
            "--shapes",
            required=True,
            help="Measure these shapes: names separated by commas. An unknown name lists the known ones.",
        ),
        click.option(
            "--precisions",
            default="full",
            show_default=True,
            help="Run sparse calls in these precisions, separated by commas.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16", "float16"]),
            multiple=True,
            default=("bfloat16",),
            show_default=True,
            help="Use this dtype for queries, keys and values. Repeat the option to measure several.",
        ),
        click.option(
            "--device",
            default="cpu",
            show_default=True,
            help="Measure on this device: cpu or cuda.",
        ),
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            required=True,
            help="Append the rows to this JSONL file. Shapes that it already holds are not measured again.",
        ),
    ]
    return functools.reduce(lambda f, option: option(f), reversed(options), function)


@command.command()
@timing_options
def kernels(shapes: str, precisions: str, dtype: tuple[str, ...], device: str, out: Path) -> None:
    """Time attention kernels without planning."""
    from dit_accel_eval.bench.run import BenchSettings

    names, kinds = shapes.split(","), precisions.split(",")
    for kind in dtype:
        print_rows(BenchSettings("kernels", names, kinds, kind, device), out)


@command.command()
@timing_options
@click.option(
    "--density",
    default=0.25,
    show_default=True,
    help="Compute this share of the (query, key) pairs in sparse calls.",
)
@click.option(
    "--query-clusters",
    type=click.IntRange(1, 1_000_000),
    help="Set the number of query clusters of a head.  [default: chosen by svg-ear]",
)
def layer(
    shapes: str,
    precisions: str,
    dtype: tuple[str, ...],
    device: str,
    density: float,
    query_clusters: int | None,
    out: Path,
) -> None:
    """Time an attention layer with its planning."""
    from dit_accel_eval.bench.run import BenchSettings

    names, kinds = shapes.split(","), precisions.split(",")
    for kind in dtype:
        print_rows(BenchSettings("layer", names, kinds, kind, device, density, query_clusters), out)


@command.command()
@timing_options
@click.option(
    "--density",
    default=0.25,
    show_default=True,
    help="Select this share of the key clusters.",
)
def model(
    shapes: str, precisions: str, dtype: tuple[str, ...], device: str, density: float, out: Path
) -> None:
    """Time the forward of a whole model."""
    from dit_accel_eval.bench.run import BenchSettings

    names, kinds = shapes.split(","), precisions.split(",")
    for kind in dtype:
        print_rows(BenchSettings("model", names, kinds, kind, device, density), out)


@command.command()
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    help="Use this dtype for queries, keys and values.  [default: float32 on a CPU, else bfloat16]",
)
@click.option(
    "--device", default="cpu", show_default=True, help="Measure this device: cpu or cuda."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write the rates to this JSON file.  [default: the user's cache, where render and doctor read them]",
)
def rates(dtype: str | None, device: str, out: Path | None) -> None:
    """Measure this machine's attention rates.

    The cost model predicts speed-ups from these rates. The measurement takes minutes.
    """
    from dit_accel.generation.placement import check_device, use_device
    from dit_accel.io.atomic import check_writable
    from dit_accel.runtime.cost_model import measured_rates_path

    check_device(device)
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    path = out or measured_rates_path(device.split(":")[0], dtype)
    check_writable(path)
    require_extra("`dit-accel bench rates`", "sklearn")
    from dit_accel_eval.bench.rates import bench_rates

    use_device(device)
    measured = bench_rates(dtype, device)
    measured.save(path)
    errors = ", ".join(f"{name} {error:.0%}" for name, error in measured.error.items())
    unseen = [abs(row["deviation"]) for row in measured.about["unseen"]]
    click.echo(f"fastest dense attention: {measured.backend}")
    click.echo(f"mean error of the fit: {errors}")
    click.echo(
        f"error of predicted speed-ups on {len(unseen)} calls that were not fitted: "
        f"{sum(unseen) / len(unseen):.0%} on average, {max(unseen):.0%} at most\nwritten: {path}"
    )


@command.command()
@click.argument("prompt")
@click.option(
    "--layers", required=True, help="Capture these layers: indices from 0, separated by commas."
)
@click.option(
    "--steps-kept",
    required=True,
    help="Capture these denoising steps: indices from 0, separated by commas. bench recall needs consecutive ones.",
)
@click.option(
    "--branch",
    default="cond",
    show_default=True,
    help="Capture this forward of a step: cond, uncond, another name, or all.",
)
@click.option(
    "--keep",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float16",
    show_default=True,
    help="Keep the tensors in this dtype.",
)
@click.option("--seed", default=0, show_default=True, help="Set the seed of the render.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Write the tensors to this .safetensors file.",
)
@model_options
def capture(
    prompt: str,
    layers: str,
    steps_kept: str,
    branch: str,
    keep: str,
    seed: int,
    out: Path,
    base: RenderSettings,
) -> None:
    """Capture attention calls of a render.

    PROMPT is rendered with dense attention. Queries, keys and values of some layers and steps are written.
    """
    layer_indices = parse_integers("--layers", layers)
    step_indices = parse_integers("--steps-kept", steps_kept)
    from dit_accel_eval.bench.capture import capture as write_capture

    calls = write_capture(
        replace(base, prompt=prompt, seed=seed),
        layer_indices,
        step_indices,
        branch=None if branch == "all" else branch,
        dtype=keep,
        out=out,
    )
    for call in calls:
        click.echo(f"layer {call['layer']}, step {call['step']}, {call['branch']}")
    click.echo(f"written: {out}")


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Write recall.json and recall.png to this folder.",
)
def recall(file: Path, out: Path) -> None:
    """Draw error against density of every method.

    FILE is a file of `bench capture`, or tiny-world for the bundled one.
    """
    from dit_accel.io.tables import format_table
    from dit_accel_assets import captures

    path = captures().get(str(file), file)
    if not path.is_file():
        known = ", ".join(captures())
        raise InvalidSettings(
            f"no capture {file}: give a file of `dit-accel bench capture`, or {known}"
        )
    require_extra("`dit-accel bench recall`", "matplotlib")
    from dit_accel_eval.bench.recall import recall as measure

    rows = measure(path, out)
    click.echo("relative error at density, by rising density")
    click.echo(format_table(tabulate_recall(rows)))
    click.echo(f"written: {out / 'recall.json'}, {out / 'recall.png'}")


def tabulate_recall(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str | None]]:
    """Return a table with a row per method, and a column per setting by rising density."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        points.setdefault(row["method"], []).append((row["density"], row["error"]))
    columns = range(max(map(len, points.values())))
    cells = {
        name: [f"{error:.3g} at {density:.2g}" for density, error in sorted(values)]
        for name, values in points.items()
    }
    return {
        name: {str(i + 1): texts[i] if i < len(texts) else None for i in columns}
        for name, texts in cells.items()
    }


def print_rows(settings: BenchSettings, out: Path) -> None:
    """Measure what is missing, and print each row."""
    from dit_accel_eval.bench.run import run_bench

    for row in run_bench(settings, out):
        click.echo(f"{row['key']['shape']} {row['key']['dtype']}: {format_row(row)}")


def format_row(row: Mapping[str, Any]) -> str:
    """Return the figures of a row with three digits each."""
    figures = {name: v for name, v in row.items() if name not in HIDDEN and v is not None}
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
    )
