"""A capture holds the tensors of the run, and every method is measured on it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.attention_inputs import attention_call, exact_attention

from dit_accel.cli import main
from dit_accel.errors import InvalidSettings
from dit_accel.generation.settings import RenderSettings
from dit_accel_assets import captures
from dit_accel_eval.bench import recall as recall_module
from dit_accel_eval.bench.capture import FORMAT, capture, read_capture
from dit_accel_eval.cli.bench import tabulate_recall
from dit_accel_pipelines import TokenLayout

SMALL = RenderSettings("a red circle", steps=3, height=64, width=64, frames=9)


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    path = tmp_path_factory.mktemp("capture") / "c.safetensors"
    capture(SMALL, [0, 3], [1, 2], branch="cond", dtype="float32", out=path)
    return path


def test_capture_keeps_calls_in_order(captured) -> None:
    calls = list(read_capture(captured))
    assert [(c.context.layer, c.context.step) for c in calls] == [(0, 1), (3, 1), (0, 2), (3, 2)]
    for call in calls:
        assert call.query.shape == call.value.shape == (1, 48, call.query.shape[2], 64)
        assert call.layout == TokenLayout(3, 4, 4)
        assert (call.context.branch, call.context.num_steps, call.context.num_layers) == (
            "cond",
            3,
            8,
        )
        assert call.query.isfinite().all()
    assert not torch.equal(calls[0].query, calls[2].query)


def test_recall_measures_every_method(captured, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(recall_module, "SHARES", (0.1, 0.9))
    rows = recall_module.recall(captured, tmp_path)
    assert {r["method"] for r in rows} == {curve.label for curve in recall_module.curves()}
    assert all(0 <= r["density"] <= 1 and r["error"] >= 0 and r["calls"] == 2 for r in rows)
    points = sorted((r["density"], r["error"]) for r in rows if r["method"] == "svg2")
    assert points[0][0] < points[1][0]
    assert points[0][1] > points[1][1]
    assert json.loads((tmp_path / "recall.json").read_text())["rows"] == rows
    assert (tmp_path / "recall.png").stat().st_size > 10_000


def test_table_of_recall_has_a_row_per_method() -> None:
    rows = [
        {"method": "svg2", "density": 0.5, "error": 0.1234},
        {"method": "svg2", "density": 0.1, "error": 0.3},
        {"method": "band", "density": 0.2, "error": 0.5},
    ]
    assert tabulate_recall(rows) == {
        "svg2": {"1": "0.3 at 0.1", "2": "0.123 at 0.5"},
        "band": {"1": "0.5 at 0.2", "2": None},
    }


def test_the_reference_is_dense_attention() -> None:
    call = attention_call(TokenLayout(2, 4, 4))
    dense = recall_module.attend_dense(call)
    torch.testing.assert_close(dense, exact_attention(call), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "steps", "message"),
    [
        ([9], [1], "no layer 9: the run has layers 0 to 7"),
        ([0], [7], "no step 7: the run has steps 0 to 2"),
        ([], [1], "at least one layer"),
    ],
    ids=str,
)
def test_missing_layers_and_steps_are_refused(tmp_path, layers, steps, message: str) -> None:
    out = tmp_path / "c.safetensors"
    with pytest.raises(InvalidSettings, match=message):
        capture(SMALL, layers, steps, branch="cond", dtype="float16", out=out)
    assert not out.exists()


def test_an_invalid_capture_is_one_line(tmp_path, capsys) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing")
    assert main(["bench", "recall", str(path), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["bench", "recall", "missing", "--out", str(tmp_path)]) == 2
    assert "no capture missing: give a file" in capsys.readouterr().err


def test_the_bundled_capture_has_two_steps_of_a_layer() -> None:
    calls = list(read_capture(captures()["tiny-world"]))
    assert [(call.context.layer, call.context.step, call.context.num_steps) for call in calls] == [
        (5, 8, 20),
        (5, 9, 20),
    ]
    assert calls[0].query.shape == (1, calls[0].layout.visual_tokens, 4, 64)
    assert all(torch.isfinite(call.value).all() for call in calls)


@pytest.mark.parametrize("calls", ["{", "[" * 100_000, "3", "[3]", "[{}]", '[{"layout": 3}]', None])
def test_a_damaged_capture_is_refused_in_one_line(tmp_path: Path, calls: str | None) -> None:
    metadata = {"format": FORMAT} if calls is None else {"format": FORMAT, "calls": calls}
    save_file({"0.query": torch.zeros(1)}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(InvalidSettings, match=r"^cannot read capture .*a\.safetensors: .+$"):
        list(read_capture(tmp_path / "a.safetensors"))
