"""Benchmarks count correctly and do not measure the rows of a file again."""

import json

import pytest
import torch

from dit_accel.cli import main
from dit_accel_eval.bench import cases, layer, peers
from dit_accel_eval.bench.cases import Shape, draw_block_map, make_inputs
from dit_accel_eval.bench.kernels import bench_kernels, sampled_mask
from dit_accel_eval.bench.measure import sample_rows, sampled_error
from dit_accel_eval.bench.model import Model, bench_model

SMALL = Shape(2, 300, 16)


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a small shape, and make every call take half a second without a timer."""
    monkeypatch.setitem(cases.SHAPES, "small", SMALL)
    for module in ("kernels", "layer", "model"):
        monkeypatch.setattr(
            f"dit_accel_eval.bench.{module}.median_seconds", lambda call, _: call() is None or 0.5
        )
    monkeypatch.setattr(peers, "compile_flex_attention", lambda: peers.flex_attention)


def test_rows_of_kernels_are_complete_and_consistent() -> None:
    rows = list(bench_kernels(SMALL, torch.float32, "cpu", ("full", "int8")))
    dense = [r for r in rows if r["kernel"] in ("SDPA", "plain matmul")]
    sparse = [r for r in rows if r["kernel"] == "dit_accel sparse"]
    assert len(dense) == 2
    assert len(sparse) == 12
    flex = [r for r in rows if r["kernel"].startswith("FlexAttention")]
    assert len(flex) == 3
    assert [r["clusters"] for r in rows if r["kernel"] == "dit_accel k-means"] == [18]
    for row in (*dense, *sparse, *flex):
        assert row["error"] < (1e-5 if row.get("precision", "full") == "full" else 0.05)
    for row in sparse:
        # All calls take the same time here.
        assert row["efficiency"] == pytest.approx(row["density"])
        assert row["tflops"] == pytest.approx(4 * row["density"] * 2 * 300**2 * 16 / 0.5 / 1e12)


def test_error_is_measured_against_masked_attention() -> None:
    tensors = [x.transpose(1, 2) for x in make_inputs(SMALL, torch.float32, "cpu")]
    block_map = draw_block_map(SMALL, (4, 18), 0.3, 0.5, "cpu")
    mask = sampled_mask(block_map)
    assert torch.equal(mask, block_map.to_mask()[0, 0][sample_rows(300)])
    out = torch.zeros(1, 2, 300, 16)
    assert sampled_error(out, *tensors, mask) == pytest.approx(1.0)


@pytest.mark.parametrize("sigma", [0.5, 0.9])
def test_block_map_has_the_requested_density(sigma: float) -> None:
    block_map = draw_block_map(Shape(2, 4000, 16), (20, 200), 0.25, sigma, "cpu")
    assert float(block_map.density()) == pytest.approx(0.25, abs=0.02)


def test_rows_of_a_layer_are_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new" / "bench.jsonl"
    arguments = ["bench", "layer", "--shapes", "small", "--dtype", "float32", "--out", str(out)]
    assert main(arguments) == 0
    *rows, end = (json.loads(line) for line in out.read_text().splitlines())
    assert end["last"]
    flex = "FlexAttention, the same pairs"
    assert [r["attention"] for r in rows] == ["SDPA", "plain matmul", "svg-ear", flex]
    # All calls take half a second here, and a plan serves two steps.
    assert rows[2]["speedup"] == pytest.approx(1 / 1.5)
    assert 0.2 < rows[2]["density"] < 0.3
    assert rows[3]["density"] == rows[2]["density"]
    monkeypatch.setattr(layer, "bench_layer", lambda *_, **__: pytest.fail("measured again"))
    assert main(arguments) == 0
    assert len(out.read_text().splitlines()) == 5


def test_rows_of_a_model() -> None:
    tiny = Model(2, 2, 16, 32, (2, 8, 8))
    dense, sparse = bench_model(tiny, torch.float32, "cpu", ("full",), density=0.25)
    assert dense["density"] is None
    assert 0 < dense["attention_share"] < 1
    assert 0 < sparse["density"] < 0.7
    assert sparse["speedup"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "huge"], "unknown shape 'huge': choose from wan-480p"),
        (["--shapes", "small", "--precisions", "int3"], "unknown precision 'int3': choose from"),
        (["--shapes", "small", "--density", "0"], "density must be in (0, 1], got 0.0"),
        (["--shapes", "small", "--device", "cuda"], "this machine has no CUDA device"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_invalid_settings_are_one_line(
    tmp_path, capsys, arguments: list[str], message: str
) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    out = tmp_path / "bench.jsonl"
    assert main(["bench", "layer", *arguments, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
