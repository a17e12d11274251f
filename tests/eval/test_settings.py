import pytest

from dit_accel import SVG2, Profile
from dit_accel.core.schedule import Guard
from dit_accel.errors import InvalidSettings
from dit_accel.generation.settings import RenderSettings
from dit_accel_eval.runs import Evaluation
from dit_accel_eval.settings import Setting, floors


def test_settings_read_methods_knobs_and_modes() -> None:
    setting = Setting.parse("svg2:top_p=0.8:schedule.dense_steps=0")
    assert setting.profile.method == SVG2(top_p=0.8)
    assert setting.profile.schedule.dense_steps == 0
    int8 = Setting.parse("svg2:precision=int8:guard=warn").profile
    assert int8 == Profile(SVG2(), precision="int8", guard=Guard("warn"))
    assert Setting.parse(setting.label) == setting
    with pytest.raises(InvalidSettings, match="'top_p' is not KNOB=VALUE, nor a recipe"):
        Setting.parse("svg2:top_p")
    with pytest.raises(InvalidSettings, match="svg9"):
        Setting.parse("svg9")


def test_settings_read_profile_files(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    Profile(SVG2(top_p=0.5), dense_precision="int8", provenance={"promise": "x"}).save(path)
    profile = Setting.parse(f"{path}:min_key_share=0.2").profile
    assert profile.method == SVG2(top_p=0.5, min_key_share=0.2)
    assert (profile.dense_precision, profile.provenance) == ("int8", {})


def test_identity_follows_the_profile_and_not_its_text() -> None:
    case = RenderSettings("a red circle").as_dense()
    first, same, other = (
        Setting.parse(f"svg2:{text}").identity(case)
        for text in ("top_p=1:guard=warn", "top_p=1.0:guard=warn", "top_p=1")
    )
    assert first == same != other
    assert first["prompt"] == "a red circle"
    assert not {"method", "knobs", "precision", "guard"} & first.keys()


def test_a_prompt_or_seed_that_is_named_twice_counts_once() -> None:
    evaluation = Evaluation(RenderSettings(""), ["p", "q", "p"], [3, 1, 3], [])
    clips = [(case.prompt, case.seed) for case in evaluation.cases()]
    assert clips == [("p", 3), ("p", 1), ("q", 3), ("q", 1)]


def test_floors_by_name_and_by_dtype() -> None:
    assert floors("none", "float32") == []
    assert [f.label for f in floors("auto", "float32")] == ["floor: attention in bfloat16"]
    assert [f.label for f in floors("auto", "bfloat16")] == ["floor: another backend"]
    assert len(floors("backend,bfloat16", "float32")) == 2
    with pytest.raises(InvalidSettings, match="unknown floor 'x': choose from auto, none, backend"):
        floors("x", "float32")
