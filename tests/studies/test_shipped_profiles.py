"""The figures of a table become the provenance of the shipped profiles."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from dit_accel import Profile
from dit_accel.runtime.presets import describe_measured
from studies.shipped_profiles import main, measured

SHARE = {"right": 18, "n": 20, "low": 0.6, "high": 0.9}
TABLE = {
    "settings": {
        **{"size": "study", "steps": 25, "guidance_scale": 1.0, "weights": "w"},
        **{"dense": "native", "versions": {}},
    },
    "rows": [
        {
            "setting": "fast",
            "clips": 20,
            "psnr": {"mean": 31.26, "half_width": 0.5, "n": 20},
            "speedup": {"median": 2.044, "low": 2.0, "high": 2.1, "n": 20},
            **{key: {"mean": 0.9} for key in ("ssim", "st_lpips", "density_all_calls", "skipped")},
            **dict.fromkeys(("correct", "correct_dense"), SHARE),
            "front": True,
        }
    ],
}


def test_figures_become_provenance(tmp_path) -> None:
    profile = Profile.from_dict({"knobs": {"density": 0.1}})
    found = measured(profile, "fast", TABLE)
    assert found.method == profile.method
    found.save(tmp_path / "fast.yaml")
    assert Profile.load(tmp_path / "fast.yaml") == found
    assert "front" not in found.provenance
    assert describe_measured(found) == (
        "measured on the bundled model at 192x192x33, 25 steps: 31.3 dB PSNR to dense and 2.04 times as fast, over 20 "
        "clips"
    )
    with pytest.raises(click.ClickException, match="no row 'quality'"):
        measured(profile, "quality", TABLE)


def test_a_tuned_profile_keeps_its_provenance(tmp_path, monkeypatch) -> None:
    paths = {name: tmp_path / f"{name}.yaml" for name in ("fast", "balanced")}
    Profile(provenance={"clips": 4}).save(paths["fast"])
    Profile(provenance={"promise": "psnr>=30"}).save(paths["balanced"])
    monkeypatch.setattr("studies.shipped_profiles.profiles", lambda: paths)
    table = tmp_path / "levers.json"
    table.write_text(json.dumps(TABLE))
    done = CliRunner().invoke(main, [str(table)])
    assert done.output == f"written: {paths['fast']}\n"
    assert Profile.load(paths["fast"]).provenance["clips"] == 20
    assert Profile.load(paths["balanced"]).provenance == {"promise": "psnr>=30"}


def test_a_tuned_profile_says_its_promise() -> None:
    figures = {"psnr": {"mean": 35.27}, "speedup": {"median": 1.889}}
    origin = {"height": 256, "width": 192, "frames": 49, "steps": 25, "clips": 20}
    tuned = Profile(provenance={"promise": "psnr>=30", "measured": figures, **origin})
    assert describe_measured(tuned) == (
        "tuned to psnr>=30, and measured on the bundled model at 192x256x49, 25 steps: 35.3 dB PSNR to dense and 1.89 "
        "times as fast, over 20 clips"
    )


def test_a_profile_without_figures_says_so() -> None:
    assert describe_measured(Profile()) == "chosen for the bundled model, and not measured"
