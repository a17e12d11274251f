"""The cost model: regression gives back rates that made the seconds; advice is said once, with its figure."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dit_accel.runtime.cost_model
from dit_accel import SVG2, Radial, Schedule, SVGEar, doctor
from dit_accel.errors import InvalidSettings
from dit_accel.runtime.cost_model import (
    Rates,
    SlowdownAdvisor,
    SlowdownWarning,
    SparseRates,
    Work,
    find_rates,
    measured_rates_path,
    predict_speedup,
    rates_for,
)
from dit_accel_eval.bench.cases import Shape
from dit_accel_eval.bench.rates import (
    ShapeTimings,
    SparseTimings,
    compare_predictions,
    fit_rates,
    measure_shapes,
)

DENSE = (2e-5, 0.4, 1.5, 0.02)
MADE_OF = SparseRates(
    plan=(1e-3, 1.0, 0.03, 5e3, 20.0), run=(2e-3, 1.0, 0.01, 1e4, 10.0, 2.0, 0.03)
)
METHODS = {0.1: SVG2(min_key_share=0.1), 0.4: SVG2(min_key_share=0.4)}


def exact(work: Work) -> float:
    return float(np.dot(DENSE, work.dense_terms())) / MADE_OF.seconds(work)


def measured_size(shape: Shape, rounds: np.ndarray) -> ShapeTimings:
    """Seconds as the rates above make them, times a factor a round and one a call."""
    size = ShapeTimings(shape)
    dense = float(np.dot(DENSE, size.work.dense_terms()))
    size.dense = {"SDPA": list(dense * rounds), "plain matmul": list(2 * dense * rounds)}
    for density, method in METHODS.items():
        work = replace(
            size.work,
            density=density,
            query_clusters=shape.tokens // 64,
            key_clusters=shape.tokens // 16,
        )
        planning = float(np.dot(MADE_OF.plan, work.plan_terms()))
        took = MADE_OF.seconds(work)
        size.sparse[method] = SparseTimings(work, list(took * rounds), list(planning * rounds))
    return size


def sizes(noise: float = 0.0, slowed: float = 1.0) -> list[ShapeTimings]:
    """Noise of every call and round; one of the five rounds slowed."""
    rng = np.random.default_rng(0)
    found = []
    for heads, head_dim in ((2, 64), (8, 128), (16, 32)):
        for tokens in (500, 1000, 3000, 9000):
            rounds = 1 + noise * rng.normal(size=5)
            rounds[2] *= slowed
            found.append(measured_size(Shape(heads, tokens, head_dim), rounds))
    return found


def test_the_fit_gives_back_what_made_the_seconds() -> None:
    rates = fit_rates(sizes(), "float32", "cpu")
    assert max(rates.error.values()) < 1e-4
    assert rates.backend == "SDPA"
    work = Work(5, 4321, 96, 0.17, 60, 250)
    assert rates.speedup("svg2", work) == pytest.approx(exact(work), rel=1e-3)
    planning = np.dot(MADE_OF.plan, work.plan_terms()) * 0.75
    shared = MADE_OF.seconds(work) / (MADE_OF.seconds(work) - planning)
    four = rates.speedup("svg2", work, plan_steps=4)  # a plan that serves four steps
    assert four == pytest.approx(shared * exact(work), rel=1e-2)
    noisy = fit_rates(sizes(noise=0.05), "float32", "cpu")
    assert noisy.speedup("svg2", work) == pytest.approx(exact(work), rel=0.1)
    assert min(*noisy.sparse["svg2"].plan, *noisy.sparse["svg2"].run) >= 0


def test_a_round_that_something_slowed_changes_nothing() -> None:
    assert fit_rates(sizes(slowed=3.0), "float32", "cpu") == fit_rates(sizes(), "float32", "cpu")


def test_a_speedup_pairs_the_rounds() -> None:
    size = measured_size(Shape(4, 2000, 64), np.array([1.0, 1.0, 2.0, 2.0, 3.0]))
    call = size.sparse[METHODS[0.1]]
    assert size.speedup(call) == pytest.approx(exact(call.work))


def test_predictions_are_compared_with_what_was_measured() -> None:
    rates = fit_rates(sizes(), "float32", "cpu")
    size = measured_size(Shape(4, 2000, 64), np.ones(5))
    call = size.sparse[METHODS[0.1]]
    call.seconds = [2 * took for took in call.seconds]  # twice as slow as the rates say
    first, second = compare_predictions(rates, [size])
    assert first["measured"] == pytest.approx(exact(call.work) / 2)
    assert first["deviation"] == pytest.approx(1.0, abs=1e-3)
    assert second["deviation"] == pytest.approx(0.0, abs=1e-3)
    assert (first["heads"], first["tokens"], first["density"]) == (4, 2000, 0.1)


def test_every_call_is_measured_in_every_round(monkeypatch) -> None:
    called = []

    def count_call(work) -> float:
        called.append(work())
        return float(len(called))

    monkeypatch.setattr("dit_accel_eval.bench.rates.quick_median_seconds", count_call)
    small = measure_shapes([Shape(2, 256, 16), Shape(1, 130, 16)], "float32", "cpu", rounds=2)
    assert len(called) == 2 * 2 * (2 + 4)  # two dense attentions, two methods at two shares
    assert small[1].dense["SDPA"] == [7.0, 19.0]
    for size in small:
        assert [m.name for m in size.sparse] == ["svg2", "svg-ear", "svg2", "svg-ear"]
        for method, call in size.sparse.items():
            assert len(call.seconds) == 2
            assert call.seconds[1] - call.seconds[0] == 12
            assert all(0 < p < s for p, s in zip(call.planning, call.seconds, strict=True))
            clusters = (call.work.query_clusters, call.work.key_clusters)
            assert clusters == method.clusters(size.shape.tokens)
            assert 0 < call.work.density < 0.8


def test_rates_come_back_from_their_file(tmp_path: Path) -> None:
    rates = fit_rates(sizes(), "float32", "cpu")
    rates.save(tmp_path / "r.json")
    assert Rates.load(tmp_path / "r.json") == rates
    (tmp_path / "r.json").write_text('{"device": "cpu"}')
    with pytest.raises(InvalidSettings, match="has no valid rates"):
        Rates.load(tmp_path / "r.json")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch) -> tuple[Path, Path]:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_: str(tmp_path / "own"))
    monkeypatch.setattr(dit_accel.runtime.cost_model, "shipped_rates", lambda: tmp_path / "shipped")
    return tmp_path / "own", tmp_path / "shipped"


def test_own_rates_win_over_shipped_ones(folders) -> None:
    assert find_rates("cpu", "float32") is None
    shipped = fit_rates(sizes(), "float32", "cpu")
    shipped.save(folders[1] / "cpu-float32.json")
    assert find_rates("cpu", "float32") == shipped
    own = fit_rates(sizes(noise=0.1), "float32", "cpu")
    own.save(measured_rates_path("cpu", "float32"))
    assert find_rates("cpu", "float32") == own
    assert find_rates("cuda", "float32") is None


def test_advice_is_said_once_with_its_figure(folders) -> None:
    fit_rates(sizes(), "float32", "cpu").save(measured_rates_path("cpu", "float32"))
    advisor, method = SlowdownAdvisor(), SVG2(min_key_share=0.1)
    small, large = torch.empty(1, 300, 4, 64), torch.empty(1, 20_000, 4, 64)
    rates = rates_for(small)
    assert rates is not None
    assert predict_speedup(method, small, rates) < 1 < predict_speedup(method, large, rates)
    told = r"svg2 cannot pay at 300 tokens: .* [\d.]+ times as long as dense, by the rates .*; such calls run dense"
    with pytest.warns(SlowdownWarning, match=told):
        advisor.check(method, small, runs=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        advisor.check(method, small, runs=True)
        advisor.check(method, large, runs=True)
        advisor.check(Radial(), small, runs=True)  # no rates
        advisor.check(SVGEar(), small, runs=True)  # none of svg-ear were measured here
        advisor.check(SVG2(min_key_share=0.1), small.half(), runs=True)
    assert advisor.remarks == [], "the report says why the calls ran dense"
    running = SlowdownAdvisor()
    with pytest.warns(SlowdownWarning, match="as long as dense"):
        running.check(method, small, runs=True)
    assert len(running.remarks) == 1
    rare = SVG2(min_key_share=0.1, refresh=5)  # planning is shared by five steps
    assert predict_speedup(rare, small, rates) > predict_speedup(method, small, rates)


def test_rates_of_other_threads_say_so(folders) -> None:
    rates = fit_rates(sizes(), "float32", "cpu")
    assert rates.caveat == ""
    here = torch.get_num_threads()
    other = replace(rates, about={**rates.about, "threads": here + 3})
    other.save(measured_rates_path("cpu", "float32"))
    told = f", measured with {here + 3} threads, not {here}: `dit-accel bench rates`"
    with pytest.warns(SlowdownWarning, match=told):
        SlowdownAdvisor().check(SVG2(min_key_share=0.1), torch.empty(1, 300, 4, 64), runs=True)
    assert told in doctor.describe_rates()["cpu float32"]
    assert replace(other, device="cuda").caveat == ""


def test_damaged_rates_do_not_stop_a_run(folders) -> None:
    fit_rates(sizes(), "float32", "cpu").save(measured_rates_path("cpu", "float32"))
    path = measured_rates_path("cpu", "float32")
    path.write_text(path.read_text().replace('"dense": [', '"dense": [0.0, '))
    advisor = SlowdownAdvisor()
    with pytest.warns(UserWarning, match="has no valid rates"):
        advisor.check(SVG2(), torch.empty(1, 300, 4, 64), runs=True)


def test_a_run_that_cannot_pay_says_so(folders, wan, run_wan) -> None:
    fit_rates(sizes(), "float32", "cpu").save(measured_rates_path("cpu", "float32"))
    for least, is_remark in ((None, False), (0, True)):
        schedule = Schedule(dense_steps=0, min_tokens=least)
        session = wan.enable_sparse_attention("svg2", schedule=schedule)
        with pytest.warns(SlowdownWarning, match="svg2 cannot pay at"):
            run_wan(wan)
        report = session.report()
        assert any("cannot pay" in remark for remark in report.remarks) is is_remark
        assert ("fewer than 768 tokens" in str(report)) is not is_remark
