"""The cost model: regression gives back rates that made the seconds; advice is said once, with its figure."""

import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

import dit_accel.cost
from dit_accel import SVG2, Radial, SVGEar
from dit_accel.cost import (
    Adviser,
    CannotPay,
    Rates,
    Work,
    find_rates,
    own_rates,
    predicted_speedup,
)
from dit_accel.errors import BadInput
from dit_accel_eval.bench.rates import compared, fit

DENSE = (2e-5, 0.4, 1.5, 0.02)
SPARSE = (3e-3, 2.0, 0.03, 5.0, 2.0, 0.03)


def rows(noise: float = 0.0) -> list[dict]:
    rng = np.random.default_rng(0)
    found = []
    for heads, head_dim in ((2, 64), (8, 128), (16, 32)):
        for tokens in (500, 1000, 3000, 9000):
            dense = Work(heads, tokens, head_dim)
            took = float(np.dot(DENSE, dense.dense_terms()))
            found.append(
                {"what": "dense", "backend": "SDPA", "seconds": took, "work": asdict(dense)}
            )
            for density in (0.1, 0.4):
                work = Work(heads, tokens, head_dim, density, tokens // 64, tokens // 16)
                took = float(np.dot(SPARSE, work.sparse_terms())) * (1 + noise * rng.normal())
                found.append({"what": "svg2", "seconds": took, "work": asdict(work)})
    return found


def test_the_fit_gives_back_what_made_the_seconds() -> None:
    rates = fit(rows(), "float32", "cpu")
    assert max(rates.error.values()) < 1e-4
    work = Work(5, 4321, 96, 0.17, 60, 250)
    exact = np.dot(DENSE, work.dense_terms()) / np.dot(SPARSE, work.sparse_terms())
    assert rates.speedup("svg2", work) == pytest.approx(exact, rel=1e-3)
    noisy = fit(rows(noise=0.05), "float32", "cpu")
    assert noisy.speedup("svg2", work) == pytest.approx(exact, rel=0.1)
    assert all(rate >= 0 for rate in noisy.sparse["svg2"])


def test_predictions_are_compared_with_what_was_measured() -> None:
    rates = fit(rows(), "float32", "cpu")
    work = Work(4, 2000, 64)
    sparse = Work(4, 2000, 64, 0.2, 31, 125)
    took = 2 * float(np.dot(SPARSE, sparse.sparse_terms()))
    dense = float(np.dot(DENSE, work.dense_terms()))
    measured = [
        {"what": "dense", "seconds": dense, "work": asdict(work)},
        {"what": "svg2", "seconds": took, "work": asdict(sparse)},
    ]
    (row,) = compared(rates, measured)
    assert row["measured"] == pytest.approx(dense / took)
    assert row["deviation"] == pytest.approx(1.0, abs=1e-3)  # twice as slow as the rates say


def test_rates_come_back_from_their_file(tmp_path: Path) -> None:
    rates = fit(rows(), "float32", "cpu")
    rates.save(tmp_path / "r.json")
    assert Rates.load(tmp_path / "r.json") == rates
    (tmp_path / "r.json").write_text('{"device": "cpu"}')
    with pytest.raises(BadInput, match="holds no rates"):
        Rates.load(tmp_path / "r.json")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch) -> tuple[Path, Path]:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_: str(tmp_path / "own"))
    monkeypatch.setattr(dit_accel.cost, "shipped_rates", lambda: tmp_path / "shipped")
    return tmp_path / "own", tmp_path / "shipped"


def test_own_rates_win_over_shipped_ones(folders) -> None:
    assert find_rates("cpu", "float32") is None
    shipped = fit(rows(), "float32", "cpu")
    shipped.save(folders[1] / "cpu-float32.json")
    assert find_rates("cpu", "float32") == shipped
    own = fit(rows(noise=0.1), "float32", "cpu")
    own.save(own_rates("cpu", "float32"))
    assert find_rates("cpu", "float32") == own
    assert find_rates("cuda", "float32") is None


def test_advice_is_said_once_with_its_figure(folders) -> None:
    fit(rows(), "float32", "cpu").save(own_rates("cpu", "float32"))
    adviser, method = Adviser(), SVG2(min_key_share=0.1)
    small, large = torch.empty(1, 300, 4, 64), torch.empty(1, 20_000, 4, 64)
    assert predicted_speedup(method, small) < 1 < predicted_speedup(method, large)
    told = r"svg2 cannot pay at 300 tokens: .* [\d.]+ times as long as dense, by the rates .*; such calls run dense"
    with pytest.warns(CannotPay, match=told):
        adviser.look(method, small, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adviser.look(method, small, True)
        adviser.look(method, large, True)
        adviser.look(Radial(), small, True)  # no rates
        adviser.look(SVGEar(), small, True)  # none of svg-ear were measured here
        adviser.look(SVG2(min_key_share=0.1), small.half(), True)
    assert len(adviser.remarks) == 1
    rare = SVG2(min_key_share=0.1, refresh=5)  # planning is shared by five steps
    assert predicted_speedup(rare, small) > predicted_speedup(method, small)


def test_damaged_rates_do_not_stop_a_run(folders) -> None:
    fit(rows(), "float32", "cpu").save(own_rates("cpu", "float32"))
    path = own_rates("cpu", "float32")
    path.write_text(path.read_text().replace('"dense": [', '"dense": [0.0, '))
    adviser = Adviser()
    with pytest.warns(UserWarning, match="holds no rates"):
        adviser.look(SVG2(), torch.empty(1, 300, 4, 64), True)


def test_a_run_that_cannot_pay_says_so(folders, wan, run_wan) -> None:
    fit(rows(), "float32", "cpu").save(own_rates("cpu", "float32"))
    session = wan.enable_sparse_attention("svg2")
    with pytest.warns(CannotPay, match="svg2 cannot pay at"):
        run_wan(wan)
    assert any("cannot pay" in remark for remark in session.report().remarks)
