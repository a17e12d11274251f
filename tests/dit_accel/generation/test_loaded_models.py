"""Models from a folder through the command line: images, LoRA files, devices that split a clip."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import support.shared_render as shared_render
import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from support.launching import SIZE, launch

from dit_accel import cli
from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import ingredients, load_pipeline, read_card
from dit_accel.generation.placement import LoadOptions
from dit_accel_eval.clip_files import read_clip

PROMPT = "a red circle moving left on a black background"


@pytest.fixture(scope="module")
def world() -> WanPipeline:
    return load_pipeline(read_card("tiny-world"))


@pytest.fixture(scope="module")
def image_model(world: WanPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a random AuraFlow that reads prompts with the tiny world's text encoder."""
    torch.manual_seed(0)
    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=world.text_encoder.config.d_model,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4)
    folder = tmp_path_factory.mktemp("models") / "image-model"
    AuraFlowPipeline(
        tokenizer=world.tokenizer,
        text_encoder=world.text_encoder,
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a random LoRA of the tiny world."""
    pipe = load_pipeline(read_card("tiny-world"))
    torch.manual_seed(0)
    pipe.transformer.add_adapter(
        LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    folder = tmp_path_factory.mktemp("loras")
    WanPipeline.save_lora_weights(
        folder, transformer_lora_layers=get_peft_model_state_dict(pipe.transformer)
    )
    return folder / "pytorch_lora_weights.safetensors"


def render(arguments: list[str], out: Path) -> Path:
    sparse = ["--set", "schedule.min_tokens=0", "--seed", "0", "--quiet", "-o", str(out)]
    assert cli.main(["render", PROMPT, *arguments, *sparse]) == 0
    return out


def test_an_image(image_model: Path, tmp_path: Path) -> None:
    size = ["--height", "48", "--width", "80", "--steps", "2"]
    report = tmp_path / "report.json"
    arguments = ["--model", str(image_model), "--method", "svg2", *size]
    out = render([*arguments, "--report", str(report)], tmp_path / "out.png")
    with Image.open(out) as image:
        assert (image.size, image.mode) == ((80, 48), "RGB")
        assert np.asarray(image).std() > 1
    record = json.loads(report.read_text())
    assert record["family"] == "auraflow"
    assert record["calls"]["sparse"] > 0
    assert not record["fallbacks"]


def test_a_negative_prompt_has_an_effect(image_model: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(image_model), "--height", "48", "--width", "48", "--steps", "2"]
    negative = ["--guidance-scale", "4", "--negative-prompt"]
    plain, other = (
        np.asarray(Image.open(render([*arguments, *negative, text], tmp_path / f"{text}.png")))
        for text in ("blue", "moving right")
    )
    assert not np.array_equal(plain, other)


def test_an_image_takes_no_frames(image_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["render", PROMPT, "--model", str(image_model), "--frames", "5"]) != 0
    assert "makes images: leave --frames out" in capsys.readouterr().err


def test_a_lora_file_and_its_scale(lora: Path, tmp_path: Path) -> None:
    arguments = [*SIZE, "--method", "svg2"]
    clips = {
        name: read_clip(render([*arguments, *options], tmp_path / f"{name}.mp4"))
        for name, options in {
            "without": [],
            "whole": ["--lora", str(lora)],
            "half": ["--lora", f"{lora}:0.5"],
            "none": ["--lora", f"{lora}:0"],
        }.items()
    }
    assert np.array_equal(clips["none"], clips["without"])
    assert not np.array_equal(clips["whole"], clips["without"])
    assert not np.array_equal(clips["half"], clips["whole"])


def test_context_parallelism_needs_accelerators() -> None:
    with (
        mock.patch("torch.accelerator.device_count", return_value=0),
        pytest.raises(InvalidSettings, match="accel"),
    ):
        LoadOptions(ulysses=2).check()


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "cuda:1"])
def test_each_process_that_splits_a_clip_needs_its_own_gpu(device: str) -> None:
    with (
        mock.patch("torch.accelerator.device_count", return_value=2),
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.device_count", return_value=2),
    ):
        with pytest.raises(
            InvalidSettings, match=f"a GPU of its own, got device '{device}': use cuda"
        ):
            LoadOptions(device, ulysses=2).check()
        LoadOptions(device).check()
        LoadOptions("cuda", ulysses=2).check()


def test_two_processes_split_a_clip(tmp_path: Path) -> None:
    """Two processes render the same clip as one."""
    arguments = [*SIZE, "--method", "svg2", "--set", "top_p=1.0"]
    alone = render(arguments, tmp_path / "alone.mp4")
    together = tmp_path / "together.mp4"
    shared = ["--context-parallel", "ulysses=2", "--set", "schedule.min_tokens=0", "--seed", "0"]
    command = ["render", PROMPT, *arguments, *shared, "--quiet", "-o", str(together)]
    assert launch(2, [str(Path(shared_render.__file__))], command) == 0
    assert np.abs(read_clip(alone) - read_clip(together)).max() < 0.02
    again = tmp_path / "again.mp4"
    assert cli.main(["replay", str(together), "--quiet", "-o", str(again)]) == 0
    assert np.abs(read_clip(alone) - read_clip(again)).max() < 0.02


@pytest.mark.parametrize("part", ["transformer", "scheduler", "lora"])
def test_ingredients_change_with_the_content_of_files(part: str, tmp_path: Path) -> None:
    folder, lora = tmp_path / "model", tmp_path / "lora.safetensors"
    shutil.copytree(read_card("tiny-world").source, folder)
    save_file({"a": torch.zeros(4)}, lora)
    load_options = LoadOptions(loras=(f"{lora}:0.5",))
    before = ingredients(read_card(str(folder)), load_options)
    assert ingredients(read_card(str(folder)), load_options) == before
    if part == "lora":
        save_file({"a": torch.ones(4)}, lora)
    elif part == "scheduler":
        path = folder / "scheduler/scheduler_config.json"
        path.write_text(path.read_text().replace("{", '{"new": 1,', 1))
    else:
        path = next((folder / "transformer").glob("*.safetensors"))
        path.write_bytes(path.read_bytes() + b" ")
    assert ingredients(read_card(str(folder)), load_options) != before
