import math

import pytest

from dit_accel_eval.summary import summarize


def record(setting: str, psnr: float | str, speedup: float, **more):
    figures = {"ssim": 0.9, "lpips": None, "flicker": 0.0, "drift": 0.0, "speedup": speedup}
    return {"setting": setting, "prompt": "p", "seed": 0, "psnr": psnr, **figures, **more}


def test_summarize_gives_a_row_per_setting_with_front_and_worst_clip() -> None:
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
    # Nothing beats a setting that equals dense and is faster. A floor is not on the front.
    assert front == {"d"}


def test_dense_attention_competes_for_the_front() -> None:
    rows = summarize([record("a", 40.0, 0.9), record("b", 30.0, 1.5), record("c", 29.0, 1.5)])
    assert {row["setting"] for row in rows if row["front"]} == {"b"}


def test_failed_clips_are_counted_and_never_the_worst() -> None:
    failed = {k: v for k, v in record("a", 0.0, 2.0, failed="NaN").items() if k != "psnr"}
    (row,) = summarize([failed, record("a", 30.0, 2.0)])
    assert (row["clips"], row["failed"], row["psnr"].n) == (2, 1, 1)
    assert row["reasons"] == ["NaN"]
    assert not row["front"], "the measured clip says nothing about the failed one"
    assert row["worst"]["psnr"] == 30.0
    (row,) = summarize([failed])
    assert row["worst"] is None
    assert not row["front"]


def test_density_by_layer_skips_clips_that_failed_before_they_had_any() -> None:
    (row,) = summarize([{"setting": "a", "prompt": "q", "seed": 0, "failed": "out of memory"}])
    assert row["layers"] == {}
    sparse = record("a", 30.0, 2.0, layers={"l0": 0.2})
    (row,) = summarize([{"setting": "a", "prompt": "q", "seed": 0, "failed": "memory"}, sparse])
    assert row["layers"] == {"l0": 0.2}
