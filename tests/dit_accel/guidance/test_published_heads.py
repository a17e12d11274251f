"""Published heads by name: their sources, what they resolve to, and a run on the family of each."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from support import tiny_components
from support.tiny_components import WIDTH, ready
from support.tiny_pipelines import TINY

from dit_accel import InvalidSettings
from dit_accel.cli import cli
from dit_accel.guidance import ModelShape, PerturbedGuidance, make_head_set
from dit_accel.guidance.published import PublishedHeads, list_published
from dit_accel_pipelines import find_family

PUBLISHED = list_published()
# Those of Sana are in test_linear_attention.py.
WITH_HEADS = [heads for heads in PUBLISHED if heads.heads and heads.family != "sana"]
WITHOUT_HEADS = [heads for heads in PUBLISHED if not heads.heads]


def name_of(heads: PublishedHeads) -> str:
    return f"{heads.name} {heads.family}"


def deep_pipeline(family: str):
    """Return a tiny pipeline with as many blocks as the published model has, and as many heads in joint models."""
    torch.manual_seed(0)
    if family == "sd3":
        shape = {"num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 4}
        joint = {"joint_attention_dim": WIDTH, "caption_projection_dim": 96, "patch_size": 2}
        latents = {"in_channels": 4, "out_channels": 4, "pos_embed_max_size": 16}
        transformer = SD3Transformer2DModel(
            sample_size=16, pooled_projection_dim=WIDTH, **shape, **joint, **latents
        )
        parts = {**tiny_components.sd3_parts(), "transformer": transformer}
        return ready(StableDiffusion3Pipeline(**parts))
    if family == "flux":
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=19,
            num_single_layers=38,
            attention_head_dim=4,
            num_attention_heads=24,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(0, 2, 2),
        )
        scheduler, vae = tiny_components.flow(), tiny_components.kl(4)
        encoders = tiny_components.NO_ENCODERS
        return ready(
            FluxPipeline(scheduler=scheduler, vae=vae, transformer=transformer, **encoders)
        )
    if family == "hunyuan-dit":
        return tiny_components.hunyuan_dit(layers=40)
    return ready(PixArtSigmaPipeline(**tiny_components.pixart_parts(layers=28)))


@pytest.fixture(scope="module")
def deep():
    """Return tiny pipelines of full depth, and their latents without guidance."""
    made = {}

    def find(family: str):
        if family not in made:
            pipe = deep_pipeline(family)
            made[family] = pipe, TINY[family].run(pipe, num_inference_steps=1)
        return made[family]

    return find


@pytest.mark.parametrize("heads", WITH_HEADS, ids=name_of)
def test_published_heads_run_on_their_family(deep, heads: PublishedHeads) -> None:
    pipe, plain = deep(heads.family)
    with pipe.enable_perturbed_guidance(heads=heads.name):
        guided = TINY[heads.family].run(pipe, num_inference_steps=1)
        report = pipe.attention_report().guidance
    assert guided.isfinite().all()
    assert not torch.equal(guided, plain)
    for name, value in heads.settings.items():
        assert report[name] == value
    shape = ModelShape.from_transformer(pipe.transformer, find_family(pipe.transformer))
    found = make_head_set(heads.name, None, shape)
    assert report["heads"] == found.to_spec()
    assert found.provenance["citation"] == heads.citation


@pytest.mark.parametrize("heads", WITHOUT_HEADS, ids=name_of)
def test_settings_without_heads_name_their_search(deep, heads: PublishedHeads) -> None:
    pipe, _ = deep(heads.family)
    with pytest.raises(InvalidSettings, match=f"heads search --setting {heads.search}") as error:
        pipe.enable_perturbed_guidance(heads=heads.name)
    assert "\n" not in str(error.value)
    assert f"scale {heads.settings['scale']}" in str(error.value)


@pytest.mark.parametrize("heads", PUBLISHED, ids=name_of)
def test_every_entry_is_valid_and_has_a_source(heads: PublishedHeads) -> None:
    PerturbedGuidance(**heads.settings)
    assert len(heads.citation) > 20
    assert bool(heads.heads) != bool(heads.search)
    single = ":" in heads.heads
    assert not single or heads.num_heads


def test_values_are_those_of_the_sources() -> None:
    by_name = {name_of(heads): heads for heads in PUBLISHED}
    assert len(by_name) == len(PUBLISHED)
    pag = {
        family: (by_name[f"pag:published {family}"].heads, by_name[f"pag:published {family}"])
        for family in ("sd3", "pixart", "hunyuan-dit")
    }
    assert {
        family: (spec, entry.settings["scale"], entry.guidance_scale)
        for family, (spec, entry) in pag.items()
    } == {
        "sd3": ("transformer_blocks.13", 0.7, 5.0),
        "pixart": ("transformer_blocks.14", 4.0, 1.0),
        "hunyuan-dit": ("blocks.14", 3.0, 4.0),
    }
    general = by_name["headhunter:general sd3"]
    assert general.settings == {"scale": 3.0, "softness": 0.25, "text_mode": "joint"}
    style = by_name["headhunter:style flux"]
    assert (style.settings["scale"], style.settings["softness"], style.steps) == (8.0, 1.0, 15)


@pytest.mark.parametrize(
    ("family", "name", "message"),
    [
        (
            "wan",
            "pag:published",
            "no heads were published as 'pag:published' for wan: there are none",
        ),
        ("sd3", "pag:mine", "no heads were published as 'pag:mine' for sd3: there are headhunter:"),
        ("sd3", "pag:published", "Stable Diffusion 3 medium with blocks .*24}, and this model has"),
        ("flux", "headhunter:golden-hour", "FLUX.1-dev with blocks"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(family: str, name: str, message: str) -> None:
    pipe = TINY[family].build()
    with pytest.raises(InvalidSettings, match=message) as error:
        pipe.enable_perturbed_guidance(heads=name)
    assert "\n" not in str(error.value)
    assert not hasattr(pipe.transformer, "_diffusers_hook")


def test_single_heads_need_as_many_heads() -> None:
    shape = ModelShape("SD3Transformer2DModel", {"transformer_blocks": 24}, 16, 64)
    with pytest.raises(InvalidSettings, match="with heads 24, and this model has 16"):
        make_head_set("headhunter:dark", None, shape)
    assert make_head_set("pag:published", None, shape).to_spec() == "transformer_blocks.13:*"


def test_the_command_line_lists_published_heads() -> None:
    result = CliRunner().invoke(cli, ["models", "sd3"], catch_exceptions=False)
    assert "pag:published" in result.output
    assert "transformer_blocks.13: scale=0.7 text_mode=visual" in result.output
    assert "Used there with guidance_scale=5.0." in result.output
    assert "no heads were published: scale=3.0 softness=0.25" in result.output
    result = CliRunner().invoke(cli, ["models"], catch_exceptions=False)
    assert "flux (2), hunyuan-dit (1), pixart (1), sana (1), sd3 (8)." in result.output
    result = CliRunner().invoke(cli, ["models", "flux", "--json"], catch_exceptions=False)
    listed = {heads["name"]: heads for heads in json.loads(result.output)["heads"]}
    assert listed["headhunter:golden-hour"]["heads"] == "single_transformer_blocks.19:18"
    assert "arXiv 2506.10978" in listed["headhunter:style"]["citation"]
