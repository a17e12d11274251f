"""``dit-accel bench``: kernels, layers and models against what else this machine has; captured attention."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dit_accel.cli.options import model_options
from dit_accel.io.parsing import parse_integers

if TYPE_CHECKING:
    from dit_accel.generation.settings import RenderSettings


@click.group("bench")
def command() -> None:
    """Measure attention: kernels alone, a layer with its planning, a model's forward, or the error on
    captured queries, keys and values.
    """


def timing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of what is timed."""
    options = [
        click.option("--shapes", required=True, help="Names by commas; a wrong one lists them."),
        click.option("--precisions", default="full", show_default=True, help="Of sparse calls."),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16", "float16"]),
            default="bfloat16",
            show_default=True,
        ),
        click.option("--device", default="cpu", show_default=True),
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            required=True,
            help="JSONL file; what it has is kept.",
        ),
    ]
    return functools.reduce(lambda f, option: option(f), reversed(options), function)


density_option = click.option(
    "--density", default=0.25, show_default=True, help="Share of key clusters."
)


@command.command()
@timing_options
def kernels(shapes: str, precisions: str, dtype: str, device: str, out: Path) -> None:
    """Time attention kernels alone."""
    _timed("kernels", shapes, precisions, dtype, device, 0.25, None, out)


@command.command()
@timing_options
@density_option
@click.option("--query-clusters", type=int, help="Per head; default: svg2's own.")
def layer(
    shapes: str,
    precisions: str,
    dtype: str,
    device: str,
    density: float,
    query_clusters: int | None,
    out: Path,
) -> None:
    """Time a whole layer call with its planning."""
    _timed("layer", shapes, precisions, dtype, device, density, query_clusters, out)


@command.command()
@timing_options
@density_option
def model(shapes: str, precisions: str, dtype: str, device: str, density: float, out: Path) -> None:
    """Time a model's forward."""
    _timed("model", shapes, precisions, dtype, device, density, None, out)


@command.command()
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    help="[default: float32 on a CPU, else bfloat16]",
)
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="JSON file.  [default: this machine's own, which render and doctor find]",
)
def rates(dtype: str | None, device: str, out: Path | None) -> None:
    """Measure what the cost model needs: attention calls of many sizes (minutes)."""
    from dit_accel.generation.placement import check_device, use_device
    from dit_accel.io.atomic import check_writable
    from dit_accel.runtime.cost_model import measured_rates_path

    check_device(device)
    use_device(device)
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    path = out or measured_rates_path(device.split(":")[0], dtype)
    check_writable(path)
    from dit_accel_eval.bench.rates import bench_rates

    found = bench_rates(dtype, device)
    found.save(path)
    errors = ", ".join(f"{name} {error:.0%}" for name, error in found.error.items())
    unseen = [abs(row["deviation"]) for row in found.about["unseen"]]
    click.echo(f"dense: {found.backend}; mean error of the fit: {errors}")
    click.echo(
        f"speed-ups at {len(unseen)} calls of sizes that were not fitted: off by {max(unseen):.0%} at most, "
        f"{sum(unseen) / len(unseen):.0%} in the mean\nwritten: {path}"
    )


@command.command()
@click.argument("prompt")
@click.option("--layers", required=True, help="Indices separated by commas, from 0.")
@click.option(
    "--steps-kept", required=True, help="Likewise; take steps next to each other, for re-ttention."
)
@click.option("--branch", default="cond", show_default=True, help="Or all.")
@click.option(
    "--keep",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float16",
    show_default=True,
    help="What tensors are kept in.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help=".safetensors file.")
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
    """Render PROMPT dense and write queries, keys and values of chosen layers and steps."""
    settings = replace(base, prompt=prompt, seed=seed)
    wanted = (parse_integers("--layers", layers), parse_integers("--steps-kept", steps_kept))
    from dit_accel_eval.bench.capture import capture as capture_calls

    calls = capture_calls(settings, *wanted, None if branch == "all" else branch, keep, out)
    for call in calls:
        click.echo(f"layer {call['layer']}, step {call['step']}, {call['branch']}")
    click.echo(f"written: {out}")


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for JSON and PNG."
)
def recall(file: Path, out: Path) -> None:
    """Draw the error of every method against its density, on a captured FILE, or on tiny-world, which is here."""
    from dit_accel_assets import captures
    from dit_accel_eval.bench.recall import recall as measure

    for row in measure(captures().get(str(file), file), out):
        click.echo(_line(row))
    click.echo(f"written: {out / 'recall.json'}, {out / 'recall.png'}")


def _timed(
    what: str,
    shapes: str,
    precisions: str,
    dtype: str,
    device: str,
    density: float,
    query_clusters: int | None,
    out: Path,
) -> None:
    from dit_accel_eval.bench.run import run_bench

    rows = run_bench(
        what,
        shapes.split(","),
        precisions.split(","),
        dtype,
        device,
        density,
        query_clusters,
        out,
    )
    for row in rows:
        click.echo(f"{row['key']['shape']} {row['key']['dtype']}: {_line(row)}")


def _line(row: dict[str, Any]) -> str:
    """A row's figures, three digits each."""
    hidden = ("key", "missing")
    shown = {k: v for k, v in row.items() if k not in hidden and v is not None}
    return ", ".join(
        f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()
    )
