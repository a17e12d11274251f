import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dit_accel.errors import BadInput
from dit_accel_eval.paired import paired_table
from dit_accel_eval.runs import Setting, estimate, unique, write_summary


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
    with pytest.raises(BadInput, match="'top_p' is not KNOB=VALUE"):
        Setting.parse("svg2:top_p")


def test_repetitions_are_no_independent_clips() -> None:
    assert unique([3, 1, 3]) == [3, 1]
    assert len(unique([Setting.parse("svg2"), Setting.parse("svg2")])) == 1


def test_summary_has_one_line_per_setting(tmp_path: Path) -> None:
    records = [{"setting": s, "psnr": p} for s, p in (("a", 30.0), ("a", 34.0), ("b", "inf"))]
    write_summary(tmp_path / "s.csv", records)
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert [(r["setting"], r["clips"], r["psnr"], r["psnr_n"]) for r in rows] == [
        ("a", "2", "32.0000", "2"),
        ("b", "1", "nan", "0"),
    ]


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
    table = {row["label"]: row for row in paired_table(records, "svg2")}
    assert table["svg2"]["svg2_gain_psnr"].mean == 0
    assert table["x"]["svg2_gain_psnr"].mean == pytest.approx(2.5)
    assert table["x"]["svg2_gain_psnr"].n == 2
    assert (table["x"]["clips"], table["x"]["correct"], table["x"]["correct_dense"]) == (3, 1, 3)
    assert table["x"]["density_all_calls"].mean == pytest.approx(0.4)
    assert table["x"]["psnr"].n == 3
