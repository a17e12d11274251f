"""Follow the error of svg-ear from an attention call to the model's output, in steps that start from the same latents.

No sampler lies between the error and the figure, so a flipped object or motion cannot hide the method.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from dit_accel import Dense, Profile, Schedule, SVGEar, enable_sparse_attention
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel.errors import RunFailed
from dit_accel.generation.identity import versions
from dit_accel.generation.loading import fingerprint
from dit_accel.generation.render import render_with
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.io.jsonl import write_json
from dit_accel_assets import captures
from dit_accel_assets.oracle import object_mask
from dit_accel_eval.bench.capture import capture, read_capture
from dit_accel_eval.bench.recall import attend_dense, relative_error
from dit_accel_eval.paired_runner import load_silently, measure_quality
from dit_accel_eval.statistics import mean_ci
from studies.budget_table import centroids
from studies.one_step_tables import tables
from studies.paired_table import dense_requests, held_out_prompts

if TYPE_CHECKING:
    from torch import Tensor

Row = dict[str, Any]

METHODS: dict[str, Callable[[float], SVGEar]] = {
    "old": centroids,
    "shared budget alone": lambda density: SVGEar(density=density, refresh=1, skipped="centroid"),
    "expansions alone": lambda density: SVGEar(
        density=density, refresh=1, selection="density", budget="query"
    ),
    "new": lambda density: SVGEar(density=density, refresh=1),
}
DENSITIES = (0.04, 0.08, 0.15, 0.3)
MIDDLE = 0.15
STEPS = (2, 8, 14, 19)
# Calls of the second capture.
CAPTURED = {"layers": (2, 4, 6), "steps": (3, 10, 16)}
ALL_SPARSE = Schedule(dense_steps=0.0, min_tokens=0)


@dataclass(frozen=True)
class State:
    """One step of a dense run.

    Attributes:
        clip, step: Index of the clip, and of the step.
        inputs: Arguments of the transformer.
        output: Its output with dense attention, ``[1, C, T, H, W]``.
        objects: Latents that show an object, bool ``[T, H, W]``.
    """

    clip: int
    step: int
    inputs: Mapping[str, Any]
    output: Tensor
    objects: Tensor

    def clean(self, output: Tensor) -> Tensor:
        """Return the clean latents that an output predicts: the latents without the noise level times the output."""
        latents: Tensor = self.inputs["hidden_states"]
        return latents - self.inputs["timestep"].view(-1, 1, 1, 1, 1) / 1000 * output


def record_states(pipe: Any, request: RenderSettings, steps: Sequence[int]) -> Iterator[State]:
    """Render a clip with dense attention, and yield its state in some steps."""
    import torch

    calls: list[tuple[dict[str, Any], Tensor]] = []
    hook = pipe.transformer.register_forward_hook(
        lambda _module, _args, inputs, output: calls.append((inputs, output[0])), with_kwargs=True
    )
    try:
        frames = render_with(pipe, request, Profile(Dense(), ALL_SPARSE)).frames
    finally:
        hook.remove()
    objects = torch.from_numpy(mask_latents(object_mask(frames), calls[0][1].shape[2:]))
    if not objects.any():
        raise RunFailed(f"the clip of {request.prompt!r} shows no object: choose another caption")
    for step in steps:
        yield State(request.seed, step, *calls[step], objects)


def mask_latents(pixels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the latents ``[T, H, W]`` of which any pixel is in a mask.

    The first latent stands for one frame, each other one for four.
    """
    frames, height, width = shape
    padded = np.concatenate([pixels[:1].repeat(3, axis=0), pixels])
    rows, columns = (size // n for size, n in zip(pixels.shape[1:], (height, width), strict=True))
    blocks = padded.reshape(frames, 4, height, rows, width, columns)
    mask: np.ndarray = blocks.any(axis=(1, 3, 5))
    return mask


def run_forward(
    transformer: Any, state: State, method: SVGEar, layer: int | None = None
) -> tuple[Tensor, float]:
    """Return the output of a forward in which one layer is sparse, or all, and the density of its sparse calls."""
    import torch

    count = len(transformer.blocks)
    dense = tuple(i for i in range(count) if layer is not None and i != layer)
    profile = Profile(method, replace(ALL_SPARSE, dense_layers=dense))
    with torch.no_grad(), enable_sparse_attention(transformer, profile=profile) as session:
        output: Tensor = transformer(**state.inputs)[0]
        density = session.report().density["sparse_calls"]
    assert density is not None
    return output, density


def decibels(ratio: float) -> float:
    """Return a ratio of squares in dB."""
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf


def error_db(actual: Tensor, expected: Tensor) -> float:
    """Return the relative error of a tensor in dB."""
    return decibels(float((actual - expected).square().sum() / expected.square().sum()))


def measure_outputs(
    pipe: Any, states: Sequence[State], densities: Sequence[float]
) -> Iterator[Row]:
    """Yield the error of the model's output, and of the clean latents in objects and background, of every method."""
    for state, density, name in itertools.product(states, densities, METHODS):
        output, computed = run_forward(pipe.transformer, state, METHODS[name](density))
        clean, expected = state.clean(output)[0], state.clean(state.output)[0]
        squares = (clean - expected).square().sum(0)  # [T, H, W]
        inside = state.objects
        yield {
            **{"method": name, "density": density, "clip": state.clip, "step": state.step},
            "computed": computed,
            "output_db": error_db(output, state.output),
            "clean_db": error_db(clean, expected),
            "objects_db": error_db(clean[:, inside], expected[:, inside]),
            "background_db": error_db(clean[:, ~inside], expected[:, ~inside]),
            "objects_share": float(squares[inside].sum() / squares.sum()),
            "objects_area": float(inside.float().mean()),
        }


@contextmanager
def captured(transformer: Any) -> Iterator[dict[tuple[str, int], Tensor]]:
    """Collect the attention of each layer, and the residual stream after its output projection and gate."""
    kept: dict[tuple[str, int], Tensor] = {}

    def keep(key: tuple[str, int], module: Any) -> Any:
        return module.register_forward_pre_hook(
            lambda _module, inputs: kept.__setitem__(key, inputs[0])
        )

    hooks = []
    for layer, block in enumerate(transformer.blocks):
        # The second norm of a block reads the stream to which the gated self-attention was added.
        hooks += [keep(("attention", layer), block.attn1.to_out[0])]
        hooks += [keep(("stream", layer), block.norm2)]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def measure_layers(pipe: Any, states: Sequence[State], density: float) -> Iterator[Row]:
    """Yield the errors of forwards in which one layer is sparse.

    ``share`` is the layer's share of the sum over all layers, and ``sum_over_all_db`` is that sum over the error of a
    forward in which all layers are sparse.
    """
    import torch

    for state in states:
        with captured(pipe.transformer) as dense, torch.no_grad():
            pipe.transformer(**state.inputs)
        for name in ("old", "new"):
            method = METHODS[name](density)
            rows = [
                measure_layer(pipe, state, method, layer, dense)
                for layer in range(len(pipe.transformer.blocks))
            ]
            errors = [10 ** (row["output_db"] / 10) for row in rows]
            together = error_db(run_forward(pipe.transformer, state, method)[0], state.output)
            for row, error in zip(rows, errors, strict=True):
                share, over = error / sum(errors), decibels(sum(errors)) - together
                yield {"method": name, **row, "share": share, "sum_over_all_db": over}


def measure_layer(
    pipe: Any,
    state: State,
    method: SVGEar,
    layer: int,
    dense: Mapping[tuple[str, int], Tensor],
) -> Row:
    """Return the errors of a forward in which one layer is sparse.

    Args:
        pipe, state, method: Pipeline, step and method.
        layer: The sparse layer.
        dense: What `captured` collected in the dense forward.
    """
    with captured(pipe.transformer) as sparse:
        output, computed = run_forward(pipe.transformer, state, method, layer)
    place = ("stream", layer)
    row = {
        **{"clip": state.clip, "step": state.step, "layer": layer, "computed": computed},
        "attention_db": error_db(sparse["attention", layer], dense["attention", layer]),
        "stream_db": error_db(sparse[place], dense[place]),
        "stream_square_db": decibels(float((sparse[place] - dense[place]).square().mean())),
        "output_db": error_db(output, state.output),
    }
    # These are gains in the relative error, and in the mean square of the error.
    row["gain_db"] = row["output_db"] - row["stream_db"]
    row["square_gain_db"] = row["output_db"] - row["stream_square_db"]
    return row


def measure_captures(request: RenderSettings, densities: Sequence[float]) -> Iterator[Row]:
    """Yield the error of attention on the bundled capture and on one of a request."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calls.safetensors"
        capture(request, **CAPTURED, branch=None, dtype="float32", out=path)
        calls = {"bundled": list(read_capture(captures()["tiny-world"]))}
        calls["second"] = list(read_capture(path))
    for name, density, method in itertools.product(calls, densities, METHODS):
        for call in calls[name]:
            ear = METHODS[method](density)
            attended = ear.attend(call, ear.new_state(), Ops(Timer()))
            assert attended is not None
            error = relative_error(attended.out, attend_dense(call))
            place = {"layer": call.context.layer, "step": call.context.step}
            figures = {"computed": float(attended.density), "error": error}
            yield {
                **{"capture": name, "method": method, "density": density},
                **place,
                **figures,
                "error_db": decibels(error**2),
            }


def measure_clips(pipe: Any, requests: Iterable[RenderSettings], density: float) -> Iterator[Row]:
    """Yield the quality of whole clips without dense steps, paired with dense attention."""
    for request in requests:
        dense = render_with(pipe, request, Profile(Dense(), ALL_SPARSE))
        for name in ("old", "new"):
            clip = render_with(pipe, request, Profile(METHODS[name](density), ALL_SPARSE))
            quality = measure_quality(dense, clip, request.prompt)
            figures = {key: quality[key] for key in ("psnr", "psnr_objects", "correct")}
            yield {"method": name, "seed": request.seed, **figures}


def average(rows: Iterable[Row], keys: Sequence[str]) -> list[Row]:
    """Return the mean of all figures of the rows that agree in some keys, and their number."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    identity = {*keys, "method", "clip", "step", "layer", "seed", "density", "capture"}
    return [
        {
            **dict(zip(keys, group, strict=True)),
            "rows": len(members),
            **{n: mean(row[n] for row in members) for n in members[0] if n not in identity},
        }
        for group, members in groups.items()
    ]


def mean(values: Iterable[float]) -> float:
    """Return a mean to four digits after the point."""
    return round(float(np.mean(list(values))), 4)


def compare(rows: Sequence[Row], keys: Sequence[str], figure: str) -> list[Row]:
    """Return how far ``new`` lies below ``old`` in a figure, as the mean, least and most of rows that agree in keys."""
    groups: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for row in rows:
        group = groups.setdefault(tuple(row[key] for key in keys), {})
        group.setdefault(row["method"], []).append(row[figure])
    gains = []
    for identity, values in groups.items():
        drops = np.subtract(values["old"], values["new"])
        figures = {
            "mean": mean(drops),
            "least": mean(drops.min(keepdims=True)),
            "most": mean(drops.max(keepdims=True)),
        }
        gains.append({**dict(zip(keys, identity, strict=True)), **figures, "n": len(drops)})
    return gains


def summarize_outputs(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the means of `measure_outputs` by density and by step, and the gain of ``new``."""
    return {
        "by_density": average(rows, ("density", "method")),
        "by_step": average(rows, ("density", "method", "step")),
        "gains": compare(rows, ("density",), "output_db"),
    }


def study_model(
    pipe: Any, requests: Sequence[RenderSettings], steps: Sequence[int]
) -> dict[str, Any]:
    """Return the errors of the outputs, and those of single layers."""
    states = [state for request in requests for state in record_states(pipe, request, steps)]
    layers = list(measure_layers(pipe, states, MIDDLE))
    return {
        "layers": {
            "density": MIDDLE,
            "by_layer": average(layers, ("method", "layer")),
            "by_step": average(layers, ("method", "step", "layer")),
        },
        "outputs": summarize_outputs(list(measure_outputs(pipe, states, DENSITIES))),
    }


def study_other_model(
    folder: Path, requests: Sequence[RenderSettings], pairs: Sequence[RenderSettings]
) -> dict[str, Any]:
    """Return the errors of the outputs of other weights, and of whole clips."""
    requests, pairs = (
        [replace(r, model=str(folder)) for r in group] for group in (requests, pairs)
    )
    request, card = validate(requests[0])
    pipe = load_silently(card, request.load_options)
    states = [state for r in requests for state in record_states(pipe, r, STEPS[:-1])]
    outputs = list(measure_outputs(pipe, states, (0.08, MIDDLE)))
    clips = list(measure_clips(pipe, pairs, MIDDLE))
    psnr = {n: [c["psnr"] for c in clips if c["method"] == n] for n in ("old", "new")}
    names = ("shift", "stochastic_sampling")
    return {
        "weights": fingerprint(card.source),
        "scheduler": {name: pipe.scheduler.config[name] for name in names},
        "outputs": summarize_outputs(outputs),
        "clips": clips,
        "psnr": {name: mean_ci(values) for name, values in psnr.items()},
        "psnr_gain": mean_ci(np.subtract(psnr["new"], psnr["old"])),
    }


@click.command()
@click.option("--size", type=click.Choice(["smoke", "study", "show"]), default="study")
@click.option("--clips", default=3, show_default=True, help="Clips whose steps are repeated.")
@click.option("--steps", default=20, show_default=True)
@click.option("--pairs", default=6, show_default=True, help="Whole clips of the other model.")
@click.option("--other-model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file.")
def main(
    size: str, clips: int, steps: int, pairs: int, other_model: Path | None, out: Path
) -> None:
    """Measure the bundled model, captures of its attention and other weights, and print the tables."""
    prompts = held_out_prompts(max(clips, pairs) + 1, seed=0)
    requests = dense_requests(prompts, size, steps, guidance_scale=1.0)
    request, card = validate(requests[0])
    pipe = load_silently(card, request.load_options)
    calls = list(measure_captures(requests[-1], DENSITIES))
    results: dict[str, Any] = {
        "settings": {
            **{"size": size, "steps": steps, "clips": clips, "guidance_scale": 1.0},
            **{"weights": fingerprint(card.source), "versions": versions()},
        },
        "captures": {
            **{"second": {"prompt": requests[-1].prompt, "seed": requests[-1].seed, **CAPTURED}},
            "errors": average(calls, ("capture", "density", "method")),
            "gains": compare(calls, ("capture", "density"), "error_db"),
        },
        **study_model(pipe, requests[:clips], STEPS),
    }
    write_json(out, results)
    if other_model:
        results["other_model"] = study_other_model(other_model, requests[:clips], requests[:pairs])
        write_json(out, results)
    click.echo("\n\n".join(tables(results)))


if __name__ == "__main__":
    main()
