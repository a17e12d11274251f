"""Measure what a layer loses if it takes the clusters and the selection of the layer before it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from dit_accel import AttentionCall, SVGEar
from dit_accel.core.attention_call import Plan
from dit_accel.core.ops import Ops
from dit_accel.generation.validation import validate
from dit_accel.io.jsonl import write_json
from dit_accel_eval.paired_runner import load_silently
from dit_accel_eval.statistics import mean_ci
from studies.one_step_error import STEPS, error_db, record_states, run_forward
from studies.paired_table import dense_requests, held_out_prompts


@dataclass(frozen=True, kw_only=True)
class SharedPlans(SVGEar):
    """svg-ear whose layers share plans in groups of neighbors. The first of a group makes the plan.

    Attributes:
        group: Number of layers in a group.
        first: First layer that shares. Layers before it have plans of their own.
        plans: The last plan.
    """

    group: int = 2
    first: int = 0
    plans: list[Plan] = field(default_factory=list, compare=False)

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> Plan:
        place = call.context.layer - self.first
        if place > 0 and place % self.group and self.plans:
            return self.plans[-1]
        self.plans[:] = [super().new_plan(call, state, ops)]
        return self.plans[-1]


@click.command()
@click.option("--size", type=click.Choice(["smoke", "study", "show"]), default="study")
@click.option("--clips", default=2, show_default=True)
@click.option("--steps", default=20, show_default=True)
@click.option("--density", default=0.15, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file.")
def main(size: str, clips: int, steps: int, density: float, out: Path) -> None:
    """Measure the error of the model's output in single steps, with plans of their own and shared ones."""
    requests = dense_requests(held_out_prompts(clips, seed=0), size, steps, guidance_scale=1.0)
    request, card = validate(requests[0])
    pipe = load_silently(card, request.load_options)
    own = SVGEar(density=density, refresh=1)
    methods = {
        "own plans": own,
        "pairs (0, 1), (2, 3), ...": SharedPlans(density=density, refresh=1),
        "pairs (1, 2), (3, 4), ...": SharedPlans(density=density, refresh=1, first=1),
    }
    errors: dict[str, list[float]] = {name: [] for name in methods}
    for state in (s for r in requests for s in record_states(pipe, r, STEPS)):
        for name, method in methods.items():
            output, _ = run_forward(pipe.transformer, state, method)
            errors[name].append(error_db(output, state.output))
    losses = {n: mean_ci(np.subtract(e, errors["own plans"])) for n, e in errors.items()}
    settings = {"size": size, "steps": steps, "clips": clips, "density": density}
    write_json(out, {"settings": settings, "output_db": errors, "loss_db": losses})
    for name, loss in losses.items():
        click.echo(
            f"{name}: {np.mean(errors[name]):.1f} dB, {loss.mean:+.1f} +- {loss.half_width:.1f}"
        )


if __name__ == "__main__":
    main()
