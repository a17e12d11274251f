import json
import math

import pytest

from dit_accel import Profile
from dit_accel.io.jsonl import to_json
from dit_accel.methods import Dense
from dit_accel_assets import profiles
from studies import lever_tables
from studies.levers_plot import curve_of, draw
from studies.levers_summary import composition_table, lever_table
from studies.levers_table import CACHES, GROUPS, entries

RATIOS = {None: {}, 0.15: {"mag_ratios": {"transformer": (1.0, 0.9)}, "num_inference_steps": 2}}


def record(label: str, seed: int, psnr: float, cpu: float, skipped: int | None = None) -> dict:
    cache = {"cache": {"forwards": 4, "skipped": skipped}} if skipped is not None else {}
    return {
        **{"label": label, "prompt": "p", "seed": seed, "psnr": psnr, "ssim": 0.9, "st_lpips": 0.1},
        **{"psnr_objects": psnr, "correct": psnr > 25, "correct_dense": True},
        **{"seconds": cpu, "dense_seconds": 8.0, "cpu_seconds": cpu, "dense_cpu_seconds": 8.0},
        **{"lever_effects": cache, "idle_levers": ["idle"] if skipped == 0 else []},
        "density": {"sparse_calls": 0.2, "all_calls": 0.4},
    }


def records(joint: float) -> list[dict]:
    """Return a cache of 4 dB more than sparse attention, and both with a PSNR."""
    return [
        r
        for seed in range(2)
        for r in (
            record("first-block 0.4", seed, 34.0, 4.0, skipped=2),
            record("svg-ear 0.15", seed, 30.0, 6.0),
            record("first-block 0.4 + svg-ear 0.15", seed, joint, 3.0, skipped=2),
        )
    ]


def test_joint_rows_name_parts_that_are_rows() -> None:
    groups = [group for group in GROUPS if group != "presets"]
    table = entries(groups, 3, {"taylorseer": 2}, RATIOS, 20)
    labels = {entry.label for entry in table}
    assert len(labels) == len(table)
    assert {part for label in labels for part in label.split(" + ")} <= labels
    assert sum(isinstance(e.profile.method, Dense) for e in table) == 3 * len(CACHES) + 2
    assert len(table) == 3 * len(CACHES) + 3 + 2 + 2 * len(CACHES)
    joint = [e.profile for e in table if "magcache 0.1 + svg-ear" in e.label]
    assert all(profile.cache.num_inference_steps == 2 for profile in joint)
    assert len(joint) == 2
    assert all((p.linears is None) == (p.compile is None) for p in joint), "all levers, or two"
    few = {entry.label for entry in table if entry.clips == 2}
    assert few == {label for label in labels if label.split()[0] == "taylorseer"}


def test_first_steps_are_a_share_and_the_last_one_is_computed() -> None:
    fewer = {"first-block": 0, "magcache": 0, "seacache": 0, "taylorseer": 0}
    table = entries(["cache"], 3, fewer, RATIOS, 25)
    assert [entry.label for entry in table] == [f"taylorseer-reuse {n}" for n in (15, 10, 6)]
    assert [e.profile.cache.disable_cache_before_step for e in table] == [15, 10, 6]
    assert {e.profile.cache.disable_cache_after_step for e in table} == {24}


def test_rows_are_left_out_by_the_words_they_begin_with() -> None:
    table = entries(["sparse", "both"], 3, {"svg-ear 0.3": 0, "svg-ear": 1}, RATIOS, 20)
    assert [e.label for e in table if e.clips == 1] == ["svg-ear 0.08", "svg-ear 0.15"]
    assert len([e for e in table if e.clips == 3]) == len(CACHES)


def test_presets_are_the_shipped_profiles() -> None:
    table = entries(["presets"], 3, {}, RATIOS, 25)
    assert {e.label: e.profile for e in table} == {
        n: Profile.load(p) for n, p in profiles().items()
    }


@pytest.mark.parametrize(
    ("joint", "by_sum", "by_largest"), [(30.0, 0.715, 1.0), (28.5446, 1.0, 1.398)], ids=str
)
def test_joint_errors_are_compared_with_the_sum_and_the_largest(joint, by_sum, by_largest) -> None:
    (row,) = composition_table(records(joint))
    assert row["clips"] == 2
    assert row["error_by_sum"].median == pytest.approx(by_sum, abs=1e-3)
    assert row["error_by_largest"].median == pytest.approx(by_largest, abs=1e-3)
    assert row["speedup_by_product"].median == pytest.approx((8 / 3) / (2 * 8 / 6))
    assert row["psnr_of_sum"].mean == pytest.approx(28.5446, abs=1e-3)
    assert composition_table(records(joint)[:1]) == []


def test_the_tables_and_the_plot_hold_every_row() -> None:
    measured, composed = lever_table(records(29.0)), composition_table(records(29.0))
    results = json.loads(to_json({"rows": measured, "composition": composed}))
    assert len(list(lever_tables.setting_table(results["rows"]))) == 2 + len(measured)
    assert len(list(lever_tables.joint_table(results["composition"]))) == 2 + len(composed) == 3
    rows = {row["setting"]: row for row in measured}
    assert rows["first-block 0.4"]["speedup"].median == 2
    assert rows["first-block 0.4"]["skipped"].mean == 0.5
    assert rows["svg-ear 0.15"]["skipped"].n == 0
    assert [row["setting"] for row in measured if row["front"]] == [
        "first-block 0.4",
        "first-block 0.4 + svg-ear 0.15",
    ]
    equal = lever_table([record("first-block 0.4", seed, math.inf, 4.0, 0) for seed in range(2)])
    assert (equal[0]["idle"], equal[0]["equal"]) == (2, 2)
    labels = [text.get_text() for text in draw(measured).legends[0].get_texts()]
    assert set(labels) == {"front", *(curve_of(label) for label in rows)}
    assert curve_of("magcache 0.1 + svg-ear 0.15") == "magcache + svg-ear 0.15"
