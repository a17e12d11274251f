import math

import numpy as np
import pytest
from scipy import stats

from dit_accel.errors import InvalidSettings
from dit_accel_eval.paired import paired_gain, paired_table
from dit_accel_eval.runs import unique
from dit_accel_eval.settings import Setting, floors
from dit_accel_eval.statistics import estimate, middle, share
from dit_accel_eval.summary import summarize


def test_estimate_equals_scipy() -> None:
    values = np.random.default_rng(0).normal(3, 2, 12)
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = estimate(list(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.mean - found.half_width == pytest.approx(interval.low)
    assert found.n == 12


def test_estimate_says_how_many_values_it_used() -> None:
    found = estimate([math.inf, "inf", None, 30.0, 32.0])
    assert (found.mean, found.n) == (31.0, 2)
    assert math.isnan(estimate([1.0]).half_width)
    assert estimate([]).n == 0


def test_setting_texts() -> None:
    setting = Setting.parse("svg2:top_p=0.8:schedule.dense_steps=0")
    assert setting.changes == {
        "method": "svg2",
        "knobs": {"top_p": "0.8", "schedule.dense_steps": "0"},
    }
    int8 = Setting.parse("svg2:precision=int8:guard=warn").changes
    assert int8 == {"method": "svg2", "knobs": {}, "precision": "int8", "guard": "warn"}
    assert Setting.parse(setting.label) == setting
    with pytest.raises(InvalidSettings, match="'top_p' is not KNOB=VALUE"):
        Setting.parse("svg2:top_p")


def test_repetitions_are_no_independent_clips() -> None:
    assert unique([3, 1, 3]) == [3, 1]
    assert len(unique([Setting.parse("svg2"), Setting.parse("svg2")])) == 1


def test_share_is_wilsons() -> None:
    interval = stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert share([True, True, False, True]) == (3, 4, interval.low, interval.high)


def test_a_median_has_an_interval_from_six_values_on() -> None:
    assert middle([1.0, None, 3.0])[0] == 2.0
    assert math.isnan(middle([1.0, 3.0]).low)
    values = [float(v) for v in range(12)]
    assert middle(values) == (5.5, 2.0, 9.0, 12)  # of order statistics 3 and 10: 1 - 2 * 0.019
    assert middle([]).n == 0


def test_floors_by_name_and_by_dtype() -> None:
    assert floors("none", "float32") == []
    assert [f.label for f in floors("auto", "float32")] == ["floor: attention in bfloat16"]
    assert [f.label for f in floors("auto", "bfloat16")] == ["floor: another backend"]
    assert len(floors("backend,bfloat16", "float32")) == 2
    with pytest.raises(InvalidSettings, match="unknown floor 'x': choose from auto, none, backend"):
        floors("x", "float32")


def record(setting: str, psnr: float | str, speedup: float, **more):
    figures = {"ssim": 0.9, "lpips": None, "flicker": 0.0, "drift": 0.0, "speedup": speedup}
    return {"setting": setting, "prompt": "p", "seed": 0, "psnr": psnr, **figures, **more}


def test_a_row_per_setting_with_the_front_and_the_worst_clip() -> None:
    rows = summarize(
        [
            record("floor: x", 60.0, 9.0),
            record("a", 30.0, 2.0, layers={"l0": 0.2}),
            record("a", 34.0, 4.0, prompt="q", layers={"l0": 0.4, "l1": 0.5}),
            record("b", 40.0, 1.0, correct=True, correct_dense=True),
            record("c", 31.0, 2.0),
            record("d", "inf", 5.0),
        ]
    )
    by_name = {row["setting"]: row for row in rows}
    a = by_name["a"]
    assert (a["clips"], a["psnr"].mean, a["psnr"].n) == (2, 32.0, 2)
    assert (a["speedup"].median, a["speedup"].n) == (3.0, 2)
    assert a["psnr_gain"].mean == 0.0
    assert by_name["b"]["psnr_gain"] == (10.0, pytest.approx(math.nan, nan_ok=True), 1)
    assert a["layers"] == {"l0": pytest.approx(0.3), "l1": 0.5}
    assert a["worst"] == {"prompt": "p", "seed": 0, "psnr": 30.0}
    assert a["lpips"].n == 0
    assert a["correct"] is None
    assert by_name["b"]["correct"].right == 1
    assert by_name["d"]["psnr"].n == 0
    front = {name for name, row in by_name.items() if row["front"]}
    assert front == {"d"}  # equal to dense and faster: nothing beats it; a floor is no setting


def test_dense_itself_competes_for_the_front() -> None:
    rows = summarize([record("a", 40.0, 0.9), record("b", 30.0, 1.5), record("c", 29.0, 1.5)])
    assert {row["setting"] for row in rows if row["front"]} == {"b"}


def test_clips_that_failed_are_counted_and_never_the_worst() -> None:
    failed = {k: v for k, v in record("a", 0.0, 2.0, failed="NaN").items() if k != "psnr"}
    (row,) = summarize([failed, record("a", 30.0, 2.0)])
    assert (row["clips"], row["failed"], row["psnr"].n) == (2, 1, 1)
    assert row["reasons"] == ["NaN"]
    assert not row["front"]  # the one clip that is left tells nothing of the other
    assert row["worst"]["psnr"] == 30.0
    (row,) = summarize([failed])
    assert row["worst"] is None
    assert not row["front"]


def test_gains_are_paired_by_clip() -> None:
    records = [
        {
            "label": m,
            "prompt": p,
            "seed": 0,
            "density": {"sparse_calls": 0.2, "all_calls": 0.4},
            "psnr": v,
            "psnr_objects": v,
            "ssim": 0.5,
            "correct": v > 28,
            "correct_dense": True,
        }
        for m, p, v in (
            ("svg2", "a", 40.0),
            ("svg2", "b", 30.0),
            ("x", "b", 27.0),
            ("x", "a", 38.0),
            ("x", "c", 20.0),
        )
    ]
    gain = paired_gain(records, "svg2", "x")
    assert (gain["of"], gain["over"]) == ("svg2", "x")
    assert (gain["psnr_gain"].mean, gain["psnr_gain"].n) == (2.5, 2), "c is not of both"
    table = {row["label"]: row for row in paired_table(records, "svg2")}
    assert table["svg2"]["svg2_gain_psnr"].mean == 0
    assert table["x"]["svg2_gain_psnr"].mean == pytest.approx(2.5)
    assert table["x"]["svg2_gain_psnr"].n == 2
    assert (table["x"]["clips"], table["x"]["correct"], table["x"]["correct_dense"]) == (3, 1, 3)
    assert table["x"]["density_all_calls"].mean == pytest.approx(0.4)
    assert table["x"]["psnr"].n == 3
