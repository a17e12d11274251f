import numpy as np
import pytest
from scipy import stats

from dit_accel.errors import InvalidSettings
from dit_accel_eval.tune.targets import FINEST, METRICS, Target, check_targets

VALUES = [30.0, 32.0, 35.0, 31.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("psnr>=30", "psnr>=30"), (" lpips <= 0.10", "lpips<=0.1"), ("caption>=.9", "caption>=0.9")],
)
def test_targets_parse_and_print(text: str, expected: str) -> None:
    assert str(Target.parse(text)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("psnr>30", "must be written like psnr>=30"),
        ("speed>=2", "metrics: psnr, psnr_objects, ssim, lpips, st_lpips, cvvdp, caption"),
        ("psnr<=30", "use >= for psnr"),
        ("lpips>=0.1", "use <= for lpips"),
        ("psnr>=1.2.3", "is not a number"),
    ],
)
def test_invalid_targets_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        Target.parse(text)


def test_a_target_holds_with_its_whole_interval() -> None:
    low, high = stats.ttest_1samp(VALUES, 0).confidence_interval(0.95)
    mean = float(np.mean(VALUES))
    assert Target("psnr", True, 0.0).interval(VALUES, 4) == pytest.approx((low, high))
    assert Target("psnr", True, low - 0.01).holds(VALUES)
    assert not Target("psnr", True, low + 0.01).holds(VALUES)
    assert not Target("psnr", True, low - 0.01).holds(VALUES, 0.99)
    assert not Target("psnr", True, mean).is_out_of_reach(VALUES)
    assert Target("psnr", True, high + 0.01).is_out_of_reach(VALUES)
    assert Target("lpips", False, high + 0.01).holds(VALUES)
    assert Target("lpips", False, low - 0.01).is_out_of_reach(VALUES)
    assert not Target("psnr", True, 0.0).holds([50.0]), "one clip has no interval"
    target = Target("psnr", True, 30.0)
    assert target.margins(VALUES, clips=100)[0] > target.margins(VALUES)[0]


def test_a_share_has_an_interval_even_if_all_clips_are_correct() -> None:
    exact = stats.binomtest(20, 20).proportion_ci(method="wilson")
    correct = [1.0] * 20
    assert Target("caption", True, exact.low - 0.01).holds(correct)
    assert not Target("caption", True, exact.low + 0.01).holds(correct)
    # Two wrong captions may be chance.
    assert not Target("caption", True, 0.5).is_out_of_reach([0.0, 0.0])


def test_a_clip_without_objects_has_no_psnr_inside_them() -> None:
    blank = np.zeros((2, 48, 48, 3), np.float32)
    assert np.isnan(METRICS["psnr_objects"](blank, blank, "", None))
    assert METRICS["psnr"](blank, blank, "", None) == FINEST


def test_almost_equal_clips_do_not_widen_the_interval() -> None:
    clip = np.full((2, 48, 48, 3), 0.5, np.float32)
    # Errors of 70, 90 and 40 dB.
    values = [METRICS["psnr"](clip + error, clip, "", None) for error in (3.2e-4, 3.2e-5, 0.01)]
    assert values == pytest.approx([FINEST, FINEST, 40.0], abs=0.1)


def test_targets_that_cannot_be_measured_are_refused_first(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    caption = "a red circle moving up on a navy background"
    check_targets([Target.parse("caption>=1"), Target.parse("psnr>=1")], [caption], None)
    with pytest.raises(InvalidSettings, match="needs captions of the tiny world: 'a fox'"):
        check_targets([Target.parse("caption>=1")], [caption, "a fox"], None)
    with pytest.raises(InvalidSettings, match="target lpips: LPIPS needs"):
        check_targets([Target.parse("lpips<=0.1")], [caption], None)
