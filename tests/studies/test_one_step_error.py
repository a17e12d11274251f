"""The study of one-step errors, on a tiny random model and on made-up rows."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.tiny_transformers import wan

from dit_accel import SVGEar
from studies.one_step_error import (
    State,
    average,
    captured,
    compare,
    error_db,
    mask_latents,
    measure_layers,
    measure_outputs,
    run_forward,
)

LAYERS = 3


def make_state() -> tuple[SimpleNamespace, State]:
    """Return a pipeline of a random transformer, and a step of it."""
    row = wan.ROWS[0]
    transformer = row.build()
    inputs = {name: tensor[:1] for name, tensor in row.inputs().items()}
    output = row.run(transformer, inputs)
    objects = torch.zeros(output.shape[2:], dtype=torch.bool)
    objects[:, :4] = True
    inputs["return_dict"] = False
    return SimpleNamespace(transformer=transformer), State(0, 2, inputs, output, objects)


def test_latents_of_a_mask_hold_any_of_its_pixels() -> None:
    pixels = np.zeros((9, 16, 24), bool)
    pixels[0, 0, 0] = pixels[4, 0, 8] = pixels[5, 15, 23] = True
    expected = np.zeros((3, 2, 3), bool)
    expected[0, 0, 0] = expected[1, 0, 1] = expected[2, 1, 2] = True
    assert (mask_latents(pixels, (3, 2, 3)) == expected).all()


def test_a_forward_that_attends_to_everything_is_dense() -> None:
    pipe, state = make_state()
    output, density = run_forward(pipe.transformer, state, SVGEar(density=1.0))
    assert density == 1
    assert error_db(output, state.output) < -100
    sparse, density = run_forward(pipe.transformer, state, SVGEar(density=0.3))
    assert density < 0.5
    assert error_db(sparse, state.output) > -100


def test_only_the_sparse_layer_makes_an_error() -> None:
    pipe, state = make_state()
    kept, streams = [], []
    block = pipe.transformer.blocks[1]
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: kept.append((inputs[0], inputs[2]))),
        block.attn1.register_forward_hook(lambda _, __, output: streams.append(output)),
    ]
    with captured(pipe.transformer) as dense:
        run_forward(pipe.transformer, state, SVGEar(density=1.0))
    with captured(pipe.transformer) as sparse:
        run_forward(pipe.transformer, state, SVGEar(density=0.3), layer=1)
    for hook in hooks:
        hook.remove()
    assert error_db(sparse["stream", 0], dense["stream", 0]) < -100
    assert error_db(sparse["attention", 1], dense["attention", 1]) > -100
    # The definition of the block: the gated output of attention is added to the stream.
    (hidden, embedding), output = kept[1], streams[1]
    gate = (block.scale_shift_table + embedding.float()).chunk(6, dim=1)[2]
    torch.testing.assert_close(sparse["stream", 1], hidden + output * gate)


def test_shares_of_layers_add_up_and_agree_with_their_errors() -> None:
    pipe, state = make_state()
    rows = list(measure_layers(pipe, [state], 0.3))
    assert [(r["method"], r["layer"]) for r in rows] == [
        (method, layer) for method in ("old", "new") for layer in range(LAYERS)
    ]
    for name in ("old", "new"):
        ours = [row for row in rows if row["method"] == name]
        assert sum(row["share"] for row in ours) == pytest.approx(1)
        first, last = ours[0], ours[-1]
        assert 10 * np.log10(first["share"] / last["share"]) == pytest.approx(
            first["output_db"] - last["output_db"]
        )
        assert first["gain_db"] == pytest.approx(first["output_db"] - first["stream_db"])


def test_objects_and_background_make_up_the_error() -> None:
    pipe, state = make_state()
    rows = list(measure_outputs(pipe, [state], (0.3,)))
    assert [row["method"] for row in rows] == [
        "old", "shared budget alone", "expansions alone", "new"
    ]  # fmt: skip
    sparse, _ = run_forward(pipe.transformer, state, SVGEar(density=0.3))
    noise = float(state.inputs["timestep"]) / 1000
    error = (noise * (sparse - state.output)).square()
    clean = (state.inputs["hidden_states"] - noise * state.output).square()
    new = rows[-1]
    assert new["objects_area"] == 0.5
    assert new["objects_share"] == pytest.approx(float(error[..., :4, :].sum() / error.sum()))
    for place, rows_of in (("objects", slice(4)), ("background", slice(4, None))):
        ratio = error[..., rows_of, :].sum() / clean[..., rows_of, :].sum()
        assert new[f"{place}_db"] == pytest.approx(10 * float(ratio.log10()), abs=1e-3)


def test_means_and_gains_pair_rows() -> None:
    errors = {"old": (-10.0, -12.0), "new": (-20.0, -16.0)}
    rows = [
        {"method": name, "density": 0.1, "step": step, "output_db": value}
        for name, values in errors.items()
        for step, value in enumerate(values)
    ]
    assert average(rows, ("density", "method")) == [
        {"density": 0.1, "method": "old", "rows": 2, "output_db": -11.0},
        {"density": 0.1, "method": "new", "rows": 2, "output_db": -18.0},
    ]
    (gain,) = compare(rows, ("density",), "output_db")
    assert gain == {"density": 0.1, "mean": 7.0, "least": 4.0, "most": 10.0, "n": 2}
