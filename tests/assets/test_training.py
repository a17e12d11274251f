"""Test the training script from end to end, at its smallest size."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from dit_accel_assets import tiny_world_path, world

sys.path.insert(0, str(Path(__file__).parents[2] / "assets"))

import gate_tiny_world
import tiny_world_readers
import tiny_world_student
import train_tiny_world


def invoke(command, *arguments: object) -> str:
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def two_clips_per_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_tiny_world, "SHARD", 2)
    monkeypatch.setattr(tiny_world_student, "BATCH_TOKENS", 640)
    wan = tiny_world_student.transformer_wan
    monkeypatch.setattr(wan, "dispatch_attention_fn", wan.dispatch_attention_fn)


@pytest.mark.usefixtures("two_clips_per_shard")
def test_stages_run_in_order(tmp_path: Path) -> None:
    work, model = tmp_path / "work", tmp_path / "model"
    train = train_tiny_world.main
    invoke(train, "vae", "--out", work, "--steps", 2)
    invoke(train, "latents", "--out", work, "--size", "smoke", "--clips", 4)
    assert len(list((work / "latents/smoke").glob("*.safetensors"))) == 2
    invoke(train, "text", "--out", work, "--steps", 2)
    shares = ("--study-share", 0, "--show-share", 0)
    invoke(train, "dit", "--out", work, "--steps", 2, "--eager", *shares)
    invoke(train, "export", "--trained", work, "--out", model)
    pipe = WanPipeline.from_pretrained(model)
    assert pipe.transformer.config.num_layers >= 8
    output = invoke(gate_tiny_world.main, "captions", "--model", model, "--pairs", 1, "--steps", 1)
    figures = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [f["objects"] for f in figures] == [1, 2]
    for path in model.rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), "a public file must not name local paths"


@pytest.mark.usefixtures("two_clips_per_shard")
def test_encoding_is_seeded_and_resumes(tmp_path: Path) -> None:
    latents = ("latents", "--size", "smoke", "--clips", 2)
    for name in ("first", "second"):
        invoke(train_tiny_world.main, *latents, "--out", tmp_path / name)
    paths = [next((tmp_path / n / "latents/smoke").iterdir()) for n in ("first", "second")]
    first, second = (load_file(p) for p in paths)
    assert all(torch.equal(first[k], second[k]) for k in first)
    written = paths[0].stat().st_mtime_ns
    invoke(train_tiny_world.main, *latents, "--out", tmp_path / "first")
    assert paths[0].stat().st_mtime_ns == written


def test_padding_bias_equals_real_padding() -> None:
    """Check that n equal keys are one key whose logit is raised by ln n."""
    transformer = WanPipeline.from_pretrained(tiny_world_path()).transformer
    attention = transformer.blocks[0].attn2
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 10, 256, generator=generator)
    text = torch.randn(1, 24, 256, generator=generator)
    padded = torch.cat([text, text[:, -1:].expand(-1, 488, -1)], dim=1)
    expected = attention(hidden, padded)
    processor = tiny_world_student.PaddingBias("cpu")
    processor.set_padding(489)
    attention.set_processor(processor)
    torch.testing.assert_close(attention(hidden, text), expected, rtol=0, atol=1e-4)


def test_labels_of_phrases_match_their_words() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_world_path() / "tokenizer")
    tokens, phrase, answers = tiny_world_readers.phrase_batch(
        tokenizer, np.random.default_rng(0), 5
    )
    for row in range(5):
        for index in range(2):
            words = tokenizer.decode(tokens[row][phrase[row] == index]).split()
            colour, shape, motion, background = answers[row, index].tolist()
            assert words[:3] == ["a", list(world.COLOURS)[colour], world.SHAPES[shape]]
            assert " ".join(words[3:]) == world.MOTIONS[motion]
            assert list(world.BACKGROUNDS)[background] in tokenizer.decode(tokens[row]).split()


def test_labels_of_tokens_match_the_scene() -> None:
    """Check a square that moves over a still circle: the first frame, then groups of four frames."""
    circle = world.Thing("red", "circle", "standing still", 0.18, (0.5, 0.5))
    square = world.Thing("blue", "square", "moving right", 0.18, (0.5, 0.5))
    labels = tiny_world_readers.token_labels(world.Scene((circle, square), "gray"), 128, 128, 17)
    assert labels.shape == (3, 5, 8, 8)
    still, moving = ((1 + list(world.COLOURS).index(t.colour), 1 + world.SHAPES.index(t.shape),
                      1 + world.MOTIONS.index(t.motion)) for t in (circle, square))  # fmt: skip
    assert tuple(labels[:, 0, 3, 3]) == still, "the square has not arrived"
    assert tuple(labels[:, 0, 3, 1]) == moving
    assert tuple(labels[:, 2, 3, 3]) == moving, "the later object covers the earlier one"
    assert not labels[:, :, 0].any(), "the upper edge shows no object"


def test_clips_with_a_circular_path_come_more_often(tmp_path: Path) -> None:
    labels = torch.zeros(10, 3, 5, 8, 8, dtype=torch.uint8)
    labels[:4, 2, 3, 2] = tiny_world_student.ORBIT
    shard = {
        "latents": torch.arange(10.0).view(10, 1, 1, 1, 1).expand(10, 8, 5, 16, 16).contiguous(),
        "tokens": torch.zeros(10, 24, dtype=torch.long),
        "labels": labels,
    }
    (tmp_path / "latents" / "smoke").mkdir(parents=True)
    save_file(shard, tmp_path / "latents" / "smoke" / "00000.safetensors")
    clips = tiny_world_student.Clips(tmp_path, "smoke", np.random.default_rng(0), orbit_copies=3)
    clips.batch(opening=True)
    # One batch takes all 10 clips.
    assert 10 + len(clips.order) == 4 * 3 + 6
