"""Test the tiny world: its captions, its renderer and its oracle."""

import numpy as np
import pytest

from dit_accel_assets import oracle
from dit_accel_assets.oracle import Sighting, look, object_mask
from dit_accel_assets.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    caption,
    closest_approach,
    is_held_out,
    parse_caption,
    render,
    sample_scene,
    trace_path,
)


def random_scenes(count: int, seed: int, objects: int | None = None):
    """Yield random scenes whose objects do not touch."""
    rng = np.random.default_rng(seed)
    while count:
        scene = sample_scene(rng, objects or int(rng.integers(1, 3)))
        if closest_approach(scene) > 0:
            count -= 1
            yield scene


def accuracy(count: int, size: str, seed: int) -> float:
    correct = [look(render(s, *SIZES[size])).agrees_with(s) for s in random_scenes(count, seed)]
    return float(np.mean(correct))


def test_oracle_is_exact_on_rendered_clips() -> None:
    assert accuracy(120, "smoke", seed=11) >= 0.99
    assert accuracy(8, "study", seed=12) == 1.0
    assert accuracy(4, "show", seed=13) == 1.0


@pytest.mark.slow
def test_oracle_on_a_thousand_clips() -> None:
    share = accuracy(1000, "smoke", seed=14)
    print(f"oracle right on {share:.1%} of 1000 clips")
    assert share >= 0.995


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("motion", MOTIONS)
def test_oracle_recognises_shapes_and_motions(shape: str, motion: str) -> None:
    scene = Scene((Thing("yellow", shape, motion),), "navy")
    assert look(render(scene, 96, 96, 9)).agrees_with(scene)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_oracle_recognises_colours(colour: str, background: str) -> None:
    scene = Scene((Thing(colour, "circle", "standing still", radius=0.1),), background)
    assert look(render(scene, 128, 128, 5)).agrees_with(scene)


def test_parsed_captions_give_the_same_caption() -> None:
    for scene in random_scenes(50, seed=3):
        parsed = parse_caption(caption(scene))
        assert parsed is not None
        assert caption(parsed) == caption(scene)
    for text in ("", "a fox", "a red circle moving left", "a red circle moving left and"):
        assert parse_caption(text) is None


def test_two_objects_of_one_colour_are_refused() -> None:
    text = "a red circle moving left and a red square moving up on a black background"
    assert parse_caption(text) is None


def test_directions_are_as_seen_in_the_image() -> None:
    time = np.array([0.0, 1.0])
    moves = {m: np.subtract(*trace_path(Thing("red", "circle", m), time)[::-1]) for m in MOTIONS}
    assert moves["moving left"][0] < 0 < moves["moving right"][0]
    assert moves["moving up"][1] < 0 < moves["moving down"][1]
    np.testing.assert_allclose(moves["standing still"], 0)
    np.testing.assert_allclose(moves["moving in a circle"], 0, atol=1e-9)


def test_triangles_point_up() -> None:
    frame = render(Scene((Thing("white", "triangle", "standing still"),), "black"), 64, 64, 1)[0]
    rows = (frame[..., 0] > 0.5).sum(1)
    inside = rows[rows > 0]
    assert inside[0] < inside[len(inside) // 2] < inside[-1]


def test_a_window_equals_that_part_of_the_clip() -> None:
    scene = next(random_scenes(1, seed=5, objects=2))
    whole = render(scene, 64, 48, 9)
    window = (slice(2, 7), slice(10, 40), slice(3, 20))
    np.testing.assert_array_equal(render(scene, 64, 48, 9, window), whole[window])


def test_oracle_finds_nothing_in_clips_without_objects() -> None:
    empty = np.zeros((5, 64, 64, 3), np.float32) + np.array(BACKGROUNDS["gray"], np.float32) / 255
    assert look(empty).things == frozenset()
    assert look(empty).background == "gray"
    assert look(np.zeros((5, 64, 64, 3)) + np.array([1.0, 0.2, 0.9])).background == oracle.NONE
    noise = np.random.default_rng(0).random((5, 64, 64, 3))
    assert look(noise).things == frozenset()


def test_oracle_does_not_guess_shape_and_motion() -> None:
    frames = render(Scene((), "black"), 96, 96, 17)
    # A thin bar jumps from side to side.
    for t, frame in enumerate(frames):
        x = 10 + (t % 2) * 50
        frame[10:90, x : x + 8] = np.array(COLOURS["red"]) / 255
    assert look(frames).things == {Sighting("red", oracle.NONE, oracle.NONE)}


def test_an_extra_object_is_an_error() -> None:
    two = next(random_scenes(1, seed=8, objects=2))
    one = Scene(two.things[:1], two.background)
    assert not look(render(two, 128, 128, 9)).agrees_with(one)
    assert not look(render(one, 128, 128, 9)).agrees_with(two)


def test_mask_covers_the_objects() -> None:
    scene = next(random_scenes(1, seed=9, objects=2))
    frames = render(scene, 128, 128, 9)
    background = np.abs(frames - frames[0, 0, 0]).max(-1) > 0.02
    mask = object_mask(frames)
    assert (mask | ~background).mean() > 0.999
    assert 0.01 < mask.mean() < 0.5


def test_a_tenth_of_the_captions_is_held_out() -> None:
    share = np.mean([is_held_out(caption(s)) for s in random_scenes(400, seed=21)])
    assert 0.05 < share < 0.15


@pytest.mark.parametrize(
    "frames", [np.zeros((3, 4, 4)), np.full((1, 8, 8, 3), np.nan)], ids=["shape", "nan"]
)
def test_bad_frames_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="frames must"):
        look(frames)
