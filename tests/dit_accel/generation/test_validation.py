"""Requests that cannot work are refused before any weights are loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from PIL import Image

from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import read_card
from dit_accel.generation.outputs import check_target, output_paths
from dit_accel.generation.render import call_arguments, render
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.guidance import ModelShape, make_head_set
from dit_accel_eval.heads.search import Search
from dit_accel_eval.heads.settings import SearchSettings

PROMPT = "a red circle"
VAE = {"block_out_channels": [8, 8, 8, 8]}
WAN = {"patch_size": [1, 2, 2]}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "DiTPipeline": ("DiTTransformer2DModel", {"patch_size": 2}),
    "LattePipeline": ("LatteTransformer3DModel", {"patch_size": 2, "video_length": 16}),
    "AllegroPipeline": ("AllegroTransformer3DModel", {"patch_size": 2, "patch_size_t": 1}),
    "HunyuanVideo15Pipeline": (
        "HunyuanVideo15Transformer3DModel",
        {"patch_size": 1, "patch_size_t": 1},
    ),
    "HunyuanDiTPipeline": (
        "HunyuanDiT2DModel",
        {"patch_size": 2, "num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 16},
    ),
    "Kandinsky5T2IPipeline": ("Kandinsky5Transformer3DModel", {"patch_size": [1, 2, 2]}),
    "Kandinsky5T2VPipeline": ("Kandinsky5Transformer3DModel", {"patch_size": [1, 2, 2]}),
    "FluxPipeline": ("FluxTransformer2DModel", {"patch_size": 1}),
    "FluxKontextPipeline": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "HunyuanVideoPipeline": (
        "HunyuanVideoTransformer3DModel",
        {"patch_size": 2, "patch_size_t": 1},
    ),
    "HunyuanSkyreelsImageToVideoPipeline": (
        "HunyuanVideoTransformer3DModel",
        {"patch_size": 2, "patch_size_t": 1},
    ),
    "QwenImagePipeline": ("QwenImageTransformer2DModel", {"patch_size": 2}),
    "QwenImageLayeredPipeline": ("QwenImageTransformer2DModel", {"patch_size": 2}),
    "QwenImageEditPipeline": ("QwenImageTransformer2DModel", {"patch_size": 2}),
    "FluxFillPipeline": ("FluxTransformer2DModel", {"patch_size": 1}),
    "FluxImg2ImgPipeline": ("FluxTransformer2DModel", {"patch_size": 1}),
    "FluxControlPipeline": ("FluxTransformer2DModel", {"patch_size": 1}),
    "LucyEditPipeline": ("WanTransformer3DModel", WAN),
    "WanVideoToVideoPipeline": ("WanTransformer3DModel", WAN),
    "WanImageToVideoPipeline": ("WanTransformer3DModel", WAN),
    "WanAnimatePipeline": ("WanAnimateTransformer3DModel", WAN),
    "HeliosPyramidPipeline": ("HeliosTransformer3DModel", WAN),
    "Cosmos2_5_TransferPipeline": ("CosmosTransformer3DModel", WAN),
    "Cosmos2VideoToWorldPipeline": ("CosmosTransformer3DModel", WAN),
    "LTXPipeline": ("LTXVideoTransformer3DModel", {}),
    "LTXImageToVideoPipeline": ("LTXVideoTransformer3DModel", {}),
    "LTX2Pipeline": ("LTX2VideoTransformer3DModel", {}),
    "CogVideoXVideoToVideoPipeline": ("CogVideoXTransformer3DModel", {"patch_size": 2}),
    "CogVideoXFunControlPipeline": ("CogVideoXTransformer3DModel", {"patch_size": 2}),
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": ("SkyReelsV2Transformer3DModel", WAN),
    "WanPipeline": ("WanTransformer3DModel", WAN),
    "AnyFlowPipeline": ("AnyFlowTransformer3DModel", WAN),
    "ZImagePipeline": ("ZImageTransformer2DModel", {"all_patch_size": [2]}),
    "Flux2KleinPipeline": ("Flux2Transformer2DModel", {"patch_size": 1}),
    "HiDreamImagePipeline": ("HiDreamImageTransformer2DModel", {"patch_size": 2}),
}


@pytest.fixture(autouse=True)
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write an image file into the working directory, under the name in `IMAGE`."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save(IMAGE["image"])


def model(folder: Path, pipeline: str) -> str:
    """Write the JSON files of a pipeline, without weights, and return their folder."""
    transformer, config = MODELS[pipeline]
    files = {
        "model_index.json": {
            "_class_name": pipeline,
            "transformer": ["diffusers", transformer],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "transformer/config.json": config,
        "vae/config.json": VAE,
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return str(folder)


IMAGE = {"image": "image.png"}
SCALED = {"true_cfg_scale": 4.0, "negative_prompt": "blurred"}


@pytest.mark.parametrize(
    ("pipeline", "options", "message"),
    [
        (
            "FluxPipeline",
            {"negative_prompt": "blurred"},
            "ignores a negative prompt with a true_cfg",
        ),
        (
            "FluxPipeline",
            {**SCALED, "true_cfg_scale": 1.0},
            "scale of 1: give --true-cfg-scale above",
        ),
        ("HunyuanVideoPipeline", {"negative_prompt": ""}, "with a true_cfg_scale of 1: give"),
        (
            "QwenImagePipeline",
            {**SCALED, "true_cfg_scale": 0.0},
            "with a true_cfg_scale of 0: give",
        ),
        (
            "QwenImagePipeline",
            {"true_cfg_scale": 4.0},
            "of 4 without a negative prompt: give --neg",
        ),
        (
            "QwenImagePipeline",
            {"guidance_scale": 4.0},
            "ignores guidance_scale (guidance_embeds is",
        ),
        (
            "FluxPipeline",
            {"guidance_scale": 3.5},
            "ignores guidance_scale (guidance_embeds is off)",
        ),
        ("AllegroPipeline", {"true_cfg_scale": 4.0}, "AllegroPipeline takes no true_cfg_scale"),
    ],
)
def test_guidance_that_a_pipeline_ignores_is_refused(tmp_path, pipeline, options, message) -> None:
    with pytest.raises(InvalidSettings) as error:
        validate(RenderSettings(PROMPT, model=model(tmp_path, pipeline), **options))
    assert message in str(error.value)


NEGATIVE = {"negative_prompt": "blurred"}


@pytest.mark.parametrize(
    ("pipeline", "options", "message"),
    [
        (
            "LTXPipeline",
            {"guidance_scale": 1.0},
            "with a guidance_scale of 1: give a --guidance-scale",
        ),
        ("LattePipeline", {"guidance_scale": 0.0}, "with a guidance_scale of 0: give a --guidance"),
        (
            "AllegroPipeline",
            {"guidance_scale": 1.0},
            "with a guidance_scale of 1: give a --guidance",
        ),
        ("Kandinsky5T2IPipeline", {"guidance_scale": 0.5}, "with a guidance_scale of 0.5: give a"),
        (
            "ZImagePipeline",
            {"guidance_scale": 0.0},
            "with a guidance_scale of 0: give a --guidance",
        ),
        (
            "AnyFlowPipeline",
            {},
            "AnyFlowPipeline ignores a negative prompt with a guidance_scale of 1",
        ),
        (
            "WanPipeline",
            {"guidance_scale": 1.0},
            "with a guidance_scale of 1: give a --guidance-sc",
        ),
    ],
)
def test_a_negative_prompt_without_guidance_is_refused(
    tmp_path, pipeline, options, message
) -> None:
    source = model(tmp_path, pipeline)
    with pytest.raises(InvalidSettings) as error:
        validate(RenderSettings(PROMPT, model=source, **NEGATIVE, **options))
    assert message in str(error.value)
    validate(RenderSettings(PROMPT, model=source, **options))
    validate(RenderSettings(PROMPT, model=source, **{**NEGATIVE, **options, "guidance_scale": 4.0}))


@pytest.mark.parametrize(
    ("pipeline", "options"),
    [
        ("WanPipeline", {}),
        ("ZImagePipeline", {"guidance_scale": 0.5}),
        ("HunyuanVideo15Pipeline", {}),
    ],
)
def test_a_negative_prompt_with_guidance_is_passed_on(tmp_path, pipeline, options) -> None:
    validate(RenderSettings(PROMPT, model=model(tmp_path, pipeline), **NEGATIVE, **options))


def test_a_distilled_model_takes_no_guidance(tmp_path) -> None:
    source = model(tmp_path, "Flux2KleinPipeline")
    validate(RenderSettings(PROMPT, model=source, guidance_scale=4.0))
    index = Path(source) / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "is_distilled": True}))
    validate(RenderSettings(PROMPT, model=source))
    with pytest.raises(
        InvalidSettings, match="is distilled, and Flux2KleinPipeline guides no such"
    ):
        validate(RenderSettings(PROMPT, model=source, guidance_scale=4.0))


def test_guidance_between_two_steps_is_refused() -> None:
    card = read_card("tiny-world")
    shape = ModelShape.from_config(card.transformer_class, card.transformer, card.family)
    heads = {**make_head_set("all", None, shape).to_dict(), "settings": {"interval": [0.3, 0.4]}}
    validate(RenderSettings(PROMPT, heads=heads, steps=20))
    with pytest.raises(InvalidSettings, match="holds none of 2 steps: give more --steps"):
        validate(RenderSettings(PROMPT, heads=heads, steps=2))


@pytest.mark.parametrize(
    ("pipeline", "options"),
    [
        ("FluxPipeline", SCALED),
        ("FluxKontextPipeline", {**SCALED, "guidance_scale": 2.5}),
        ("HunyuanVideoPipeline", {**SCALED, "guidance_scale": 6.0}),
        ("QwenImagePipeline", {"negative_prompt": " "}),
        ("QwenImagePipeline", {"true_cfg_scale": 1.0}),
    ],
)
def test_guidance_with_an_effect_is_passed_on(tmp_path, pipeline, options) -> None:
    settings, _ = validate(RenderSettings(PROMPT, model=model(tmp_path, pipeline), **options))
    assert {name: call_arguments(settings)[name] for name in options} == options


@pytest.mark.parametrize(
    ("pipeline", "options", "message"),
    [
        ("DiTPipeline", {}, "DiTPipeline takes no prompt: call it in Python"),
        ("LattePipeline", {"frames": 16}, "LattePipeline takes no num_frames: leave it out"),
        ("HunyuanVideo15Pipeline", {"guidance_scale": 6.0}, "takes no guidance_scale: leave it"),
        (
            "QwenImageLayeredPipeline",
            IMAGE,
            "makes several transparent layers, not one",
        ),
        ("AllegroPipeline", {"frames": 5}, "frames 5 is not a multiple of 4: use 4 or 8"),
        ("ZImagePipeline", {"pag_scale": 3.0}, "does not know how z-image calls its"),
        ("ZImagePipeline", {"heads": "all"}, "does not know how z-image calls its"),
        ("Kandinsky5T2IPipeline", {"frames": 5}, "Kandinsky5T2IPipeline makes images: leave"),
    ],
)
def test_arguments_that_a_pipeline_does_not_take_are_refused(
    tmp_path, pipeline, options, message
) -> None:
    with pytest.raises(InvalidSettings) as error:
        validate(RenderSettings(PROMPT, model=model(tmp_path, pipeline), **options))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("pipeline", "options", "message"),
    [
        ("WanAnimatePipeline", IMAGE, "WanAnimatePipeline needs pose_video, face_video: call it"),
        ("LucyEditPipeline", {}, "LucyEditPipeline needs video: call it in Python"),
        (
            "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
            {},
            "VideoPipeline needs video: call it",
        ),
        ("CogVideoXVideoToVideoPipeline", {}, "VideoToVideoPipeline needs video: call it"),
        ("WanVideoToVideoPipeline", {}, "VideoToVideoPipeline needs video: call it"),
        ("CogVideoXFunControlPipeline", {}, "FunControlPipeline needs control_video: call it"),
        ("Cosmos2_5_TransferPipeline", {}, "Cosmos2_5_TransferPipeline needs controls: call it"),
        ("FluxFillPipeline", IMAGE, "FluxFillPipeline needs mask_image: call it in Python"),
        ("FluxControlPipeline", {}, "FluxControlPipeline needs control_image: call it"),
        ("HeliosPyramidPipeline", {"steps": 4}, "takes no num_inference_steps: leave it out"),
        ("QwenImageEditPipeline", {}, "QwenImageEditPipeline starts from an image: give --image"),
        ("FluxImg2ImgPipeline", {}, "FluxImg2ImgPipeline starts from an image: give --image"),
        ("LTXImageToVideoPipeline", {}, "LTXImageToVideoPipeline starts from an image: give"),
        ("Cosmos2VideoToWorldPipeline", {}, "VideoToWorldPipeline starts from an image: give"),
        ("WanImageToVideoPipeline", {}, "WanImageToVideoPipeline starts from an image: give"),
    ],
)
def test_pipelines_that_need_more_than_a_request_holds_are_refused(
    tmp_path, pipeline, options, message
) -> None:
    with pytest.raises(InvalidSettings) as error:
        validate(RenderSettings(PROMPT, model=model(tmp_path, pipeline), **options))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("pipeline", "options"),
    [
        ("QwenImageEditPipeline", IMAGE),
        ("FluxImg2ImgPipeline", IMAGE),
        ("WanImageToVideoPipeline", IMAGE),
        ("HunyuanSkyreelsImageToVideoPipeline", {**IMAGE, "negative_prompt": "blurred"}),
        # It also makes an image without one.
        ("FluxKontextPipeline", {}),
        ("HeliosPyramidPipeline", {}),
        # Its call takes any keywords.
        ("HiDreamImagePipeline", {"steps": 4}),
    ],
)
def test_complete_requests_are_valid(tmp_path, pipeline, options) -> None:
    validate(RenderSettings(PROMPT, model=model(tmp_path, pipeline), **options))


def test_a_head_search_needs_a_family_that_can_be_guided(tmp_path: Path) -> None:
    settings = SearchSettings((PROMPT,), reward="sharpness")
    base = RenderSettings("", model=model(tmp_path / "model", "ZImagePipeline"), steps=1)
    with pytest.raises(InvalidSettings, match="does not know how z-image calls its"):
        Search.open(settings, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_frames_that_are_left_out_stay_with_the_pipeline(tmp_path: Path) -> None:
    settings, _ = validate(RenderSettings(PROMPT, model=model(tmp_path, "AllegroPipeline")))
    assert settings.frames is None


@pytest.mark.parametrize(
    ("pipeline", "ending"), [("Kandinsky5T2IPipeline", ".png"), ("Kandinsky5T2VPipeline", ".mp4")]
)
def test_some_pipelines_of_a_video_family_make_images(tmp_path, pipeline, ending) -> None:
    checked = validate(RenderSettings(PROMPT, model=model(tmp_path, pipeline)))
    (path,) = output_paths([checked], [{}], None)
    assert (path.name[:18], path.suffix) == ("a-red-circle-seed0", ending)


def test_folders_may_have_dots_and_be_missing(tmp_path: Path) -> None:
    one = validate(RenderSettings(PROMPT))
    (path,) = output_paths([one], [{}], tmp_path / "out")
    assert path.parent == tmp_path / "out"
    several = output_paths([one, one], [{}, {}], tmp_path / "v1.0")
    assert {path.parent for path in several} == {tmp_path / "v1.0"}
    with pytest.raises(InvalidSettings, match="one file for 2 prompts"):
        check_target([one, one], tmp_path / "out.mp4")


@pytest.mark.parametrize("scale", [math.inf, math.nan, -1.0])
def test_the_scale_of_guidance_must_be_finite(scale: float) -> None:
    with pytest.raises(InvalidSettings, match=f"scale must be .*finite.*, got {scale}"):
        validate(RenderSettings(PROMPT, pag_scale=scale))


@pytest.mark.parametrize(
    ("heads", "message"), [("", "heads are written like"), ({}, "not a head set")], ids=repr
)
def test_empty_heads_are_refused(heads: Any, message: str, wan: Any) -> None:
    with pytest.raises(InvalidSettings, match=message):
        validate(RenderSettings(PROMPT, heads=heads))
    with pytest.raises(InvalidSettings, match=message):
        render(wan, RenderSettings(PROMPT, heads=heads, height=32, width=32, frames=5, steps=1))


@pytest.mark.parametrize("options", [{"guard": "on"}, {"pag_scale": 1.0}], ids=str)
def test_splitting_a_clip_excludes_guidance_and_reruns(options: dict[str, Any]) -> None:
    with (
        mock.patch("torch.accelerator.device_count", return_value=2),
        mock.patch("torch.cuda.is_available", return_value=False),
        pytest.raises(InvalidSettings, match="under context parallelism"),
    ):
        validate(RenderSettings(PROMPT, ulysses=2, **options))


@pytest.mark.parametrize("pipeline", ["LTXPipeline", "LTX2Pipeline"])
def test_pipelines_whose_masks_cover_all_heads_cannot_split_a_clip(tmp_path, pipeline) -> None:
    settings = RenderSettings(PROMPT, model=model(tmp_path, pipeline), ulysses=2)
    with (
        mock.patch("torch.accelerator.device_count", return_value=2),
        mock.patch("torch.cuda.is_available", return_value=False),
        pytest.raises(
            InvalidSettings,
            match=f"{pipeline} cannot split a clip among devices .* leave --context-par",
        ),
    ):
        validate(settings)
