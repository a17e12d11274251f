import pytest

from dit_accel import SVG2, Schedule
from dit_accel.core.schedule import crossover_tokens
from dit_accel.errors import InvalidSettings
from dit_accel.generation.settings import RenderSettings, build_profile


@pytest.mark.parametrize(
    ("share", "steps", "dense"),
    [
        (0.0, 20, 0),
        (0.2, 20, 4),
        (0.2, 4, 1),
        (0.3, 25, 8),
        (0.28, 25, 7),
        (0.14, 50, 7),
        (1.0, 7, 7),
    ],
)
def test_dense_steps_round_up(share: float, steps: int, dense: int) -> None:
    schedule = Schedule(dense_steps=share)
    assert [schedule.step_is_dense(i, steps) for i in range(steps)] == [True] * dense + [False] * (
        steps - dense
    )


def test_dense_layers_count_from_both_ends() -> None:
    schedule = Schedule(dense_layers=(0, -1))
    assert [schedule.layer_is_dense(i, 4) for i in range(4)] == [True, False, False, True]


def test_knobs_are_read_from_texts() -> None:
    knobs = {
        "top_p": "0.8",
        "kmeans_iterations": "4,1",
        "query_clusters": "none",
        "schedule.dense_steps": "0.1",
        "schedule.dense_layers": "0,-1",
    }
    profile = build_profile(RenderSettings("a", method="svg2", knobs=knobs))
    method, schedule = profile.method, profile.schedule
    assert method == SVG2(top_p=0.8, kmeans_iterations=(4, 1))
    assert schedule == Schedule(dense_steps=0.1, dense_layers=(0, -1))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"top_q": "1"}, "unknown svg2 knob 'top_q': choose from refresh"),
        ({"top_p": "0"}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": "1.5"}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"top_p": "high"}, "svg2 knob top_p: .*got 'high'"),
        ({"key_clusters": "0"}, "key_clusters must be at least 1, got 0"),
        ({"min_key_share": "2"}, r"min_key_share must be in \[0, 1\], got 2.0"),
        ({"kmeans_iterations": "0,1"}, "kmeans_iterations must both be at least 1"),
        ({"schedule.dense_steps": "3"}, r"dense_steps must be in \[0, 1\], got 3.0"),
        ({"schedule.dense_step": "0.1"}, "unknown schedule knob 'dense_step'"),
        ({"schedule.min_tokens": "-1"}, "min_tokens must be 0 or more, got -1"),
    ],
    ids=str,
)
def test_bad_knobs_are_one_line(knobs: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidSettings, match=message) as caught:
        build_profile(RenderSettings("a", method="svg2", knobs=knobs))
    assert "\n" not in str(caught.value)


def test_single_values_and_plus_make_sequences() -> None:
    knobs = {"kmeans_iterations": "4+1", "schedule.dense_layers": "3"}
    profile = build_profile(RenderSettings("a", method="svg2", knobs=knobs))
    method, schedule = profile.method, profile.schedule
    assert method == SVG2(kmeans_iterations=(4, 1))
    assert schedule == Schedule(dense_layers=(3,))


@pytest.mark.parametrize("prompt", ["a fox, in the snow", "none", "8,2"])
def test_texts_are_left_alone(prompt: str) -> None:
    assert RenderSettings.from_dict({"prompt": prompt, "negative_prompt": prompt}).prompt == prompt


@pytest.mark.parametrize("tokens", [1, 7, 320, 3328, 75600])
def test_clusters_scale_with_tokens_and_never_exceed_them(tokens: int) -> None:
    queries, keys = SVG2().clusters(tokens)
    assert 1 <= queries <= keys <= tokens
    assert SVG2(query_clusters=50, key_clusters=60).clusters(tokens) == (
        min(50, tokens),
        min(60, tokens),
    )


def test_the_crossover_of_a_cpu_depends_on_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    load_library = "dit_accel_kernels.cpu.compiled.load_library"
    monkeypatch.setattr(load_library, lambda: "no C++ compiler")
    assert crossover_tokens("cpu") == 2048
    monkeypatch.setattr(load_library, object)
    assert crossover_tokens("cpu") == 768
    assert crossover_tokens("cuda") == 16_384
    assert crossover_tokens("mps") == 0
