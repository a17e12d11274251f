"""The state that methods keep: the estimate from shapes is what a run allocates."""

import dataclasses
import json

import pytest
import torch
from support.tiny_transformers import ROWS

from dit_accel import SVG, SVG2, Neighborhood, ReTtention, Schedule, SVGEar, XAttention
from dit_accel.cli import main
from dit_accel.generation.loading import ModelCard
from dit_accel.generation.memory import count_bytes, estimate_state, state_bytes
from dit_accel.generation.settings import RenderSettings
from dit_accel_pipelines import AttentionShape, TokenLayout, find_family

ALWAYS = Schedule(dense_steps=0, min_tokens=0)
METHODS = (
    SVG2(),
    SVG2(refresh=4),
    SVGEar(density=0.2),
    SVGEar(density=0.2, refresh=2, selection="error"),
    ReTtention(),
    ReTtention(mask="svg-ear", mode="paper"),
    SVG(refresh=3),
    XAttention(refresh=2, block=16),
    Neighborhood(),
)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_estimate_is_what_a_run_allocates(wan, run_wan, method) -> None:
    session = wan.enable_sparse_attention(method, schedule=ALWAYS)
    measured: list[tuple[int, int]] = []

    def measure(pipe, index, timestep, arguments):
        run = session._contexts.latest.run
        shared = count_bytes(run.ops.shared_values())
        own = count_bytes([run.states, run.ops.shared_values()]) - shared
        measured.append((own, shared))
        return arguments

    run_wan(wan, callback_on_step_end=measure)
    predicted = state_bytes(
        method, TokenLayout(6, 4, 4), AttentionShape(3, 2, 16), dtype=torch.float32
    )
    own, shared = max(measured)
    # On a CPU the op's outputs have one more row, for padding.
    assert own == pytest.approx(predicted.each * predicted.count, rel=0.01)
    assert shared == predicted.shared
    assert own + shared > 0


def test_dry_run_prints_the_state(capsys) -> None:
    arguments = [
        "render",
        "a red circle",
        "--dry-run",
        "--size",
        "smoke",
        "--method",
        "re-ttention",
    ]
    assert main(arguments) == 0
    state = json.loads(capsys.readouterr().out)["method_state"]
    assert state["tokens"] == 320
    assert state["bytes"] > 8 * 2 * 320 * 64 * 4


def test_a_large_model_allocates_nothing() -> None:
    wan_14b = AttentionShape(layers=40, heads=40, head_dim=128)
    state = state_bytes(ReTtention(), TokenLayout(21, 45, 80), wan_14b)
    # The complement's output in bf16 and two log-sum-exps, for 75,600 tokens, 40 heads, 40 layers, two branches.
    assert state.each * state.count >= 75600 * 40 * (128 * 2 + 8) * 80


def test_true_cfg_of_embedded_families_keeps_a_second_branch() -> None:
    transformer = next(row for row in ROWS if row.family == "flux").build()
    family, vae = find_family(transformer), {"block_out_channels": [8, 8, 8, 8]}
    name = type(transformer).__name__
    card = ModelCard("flux", "FluxPipeline", family, name, dict(transformer.config), vae, 1)
    settings = RenderSettings("a", method="svg2", frames=1, height=64, width=64)
    each, both = (
        estimate_state(dataclasses.replace(settings, true_cfg_scale=scale), card)
        for scale in (None, 4.0)
    )
    assert each is not None
    assert both is not None
    assert both["bytes"] - both["bytes_shared"] == 2 * (each["bytes"] - each["bytes_shared"])
