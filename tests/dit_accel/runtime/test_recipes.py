"""Published recipes: their files, how one is found by name and by model, and where a name is accepted."""

import dataclasses
import json

import pytest
from click.testing import CliRunner
from support import tiny_components, tiny_pipelines
from support.tiny_transformers import ROWS

from dit_accel import SVG2, Profile, attention_report, enable_sparse_attention
from dit_accel.cli import cli
from dit_accel.comfyui.settings_nodes import make_attention
from dit_accel.errors import InvalidSettings
from dit_accel.generation.settings import RenderSettings, attention_settings, resolve_profile
from dit_accel.runtime.recipes import (
    ModelTraits,
    Recipe,
    choose_published,
    find_recipe,
    is_published,
    list_recipes,
    read_profile,
    task_of,
)
from dit_accel_eval.settings import Setting
from dit_accel_pipelines import families

RECIPES = list_recipes()


def recipe(name: str, **traits) -> Recipe:
    return Recipe(f"svg2:{name}", "wan", "Model", "source", {}, **traits)


@pytest.mark.parametrize("published", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_is_a_valid_profile_with_its_source(published: Recipe) -> None:
    profile = published.profile()
    assert profile.method.name == published.method
    assert profile.provenance["recipe"] == published.name
    assert published.family in {"any", *(family.name for family in families())}
    assert len(published.citation) > 20
    assert set(published.values) <= {"method", "knobs", "schedule", "provenance"}
    assert {"method", "knobs", "schedule"} <= set(published.values)
    assert Profile.from_dict(profile.to_dict()) == profile


def test_a_recipe_holds_the_values_of_the_released_script() -> None:
    """The values of wan_t2v_720p_sap.sh: 10 of 50 steps and 1 of 40 layers dense."""
    profile = read_profile("svg2:wan-2.1-t2v-720p")
    assert isinstance(profile.method, SVG2)
    assert (profile.method.query_clusters, profile.method.key_clusters) == (300, 1000)
    assert (profile.method.top_p, profile.method.min_key_share) == (0.9, 0.1)
    assert profile.method.kmeans_iterations == (50, 2)
    assert [profile.schedule.step_is_dense(step, 50) for step in (9, 10)] == [True, False]
    assert profile.schedule.dense_layers == (0,)


def test_the_published_recipe_follows_task_experts_layers_and_size() -> None:
    recipes = [
        recipe("a-turbo", height=720, width=1280, layers=40, variant="turbo"),
        recipe("a-480p", height=480, width=832, layers=40),
        recipe("b-720p", height=720, width=1280, layers=40),
        recipe("c-small", height=480, width=832, layers=30),
        recipe("d-two", height=720, width=1280, layers=40, transformers=2),
        recipe("e-image", height=480, width=832, layers=40, task="i2v"),
    ]

    def chosen(**traits) -> str:
        found = choose_published(recipes, ModelTraits("wan", **traits))
        assert found is not None
        return found.name.removeprefix("svg2:")

    big = {"layers": 40, "transformers": 1, "task": "t2v"}
    assert chosen(**big) == "b-720p"
    assert chosen(**big, height=464, width=848) == "a-480p"
    assert chosen(**big, height=704, width=1280) == "b-720p"
    assert chosen(**{**big, "layers": 30}, height=720, width=1280) == "c-small"
    assert chosen(**{**big, "layers": 2}) == "b-720p"
    assert chosen(**{**big, "transformers": 2}) == "d-two"
    assert chosen(**{**big, "task": "i2v"}, height=720, width=1280) == "e-image"
    assert choose_published(recipes, ModelTraits("flux")) is None
    anywhere = dataclasses.replace(recipes[1], family="any")
    assert choose_published([*recipes, anywhere], ModelTraits("flux")) == anywhere
    assert choose_published([anywhere, recipes[2]], ModelTraits("wan")) == recipes[2]


def test_every_choice_of_the_shipped_recipes_is_the_right_one() -> None:
    def published(method: str, family: str, **traits) -> str:
        return find_recipe(f"{method}:published", ModelTraits(family, **traits)).name

    assert published("svg2", "wan", task="t2v") == "svg2:wan-2.1-t2v-720p"
    assert published("svg2", "wan", task="i2v") == "svg2:wan-2.1-i2v-720p"
    assert published("svg2", "wan", task="i2v", transformers=2) == "svg2:wan-2.2-i2v-720p"
    assert published("radial", "wan", task="t2v", transformers=1) == "radial:wan-2.1-t2v-768p"
    assert published("radial", "wan", task="t2v", transformers=2) == "radial:wan-2.2-t2v-768p"
    assert published("xattention", "hunyuan-video") == "xattention:hunyuan-video-720p"
    assert published("svg", "cogvideox", task="t2v") == "svg:cogvideox-1.5-i2v-768p"
    assert published("svg-ear", "wan", task="i2v") == "svg-ear:wan-2.1-i2v-720p"
    assert published("svg-ear", "wan", task="t2v", transformers=2) == "svg-ear:wan-2.2-t2v-720p"
    assert published("svg-ear", "hunyuan-video") == "svg-ear:hunyuan-video-720p"
    assert published("permuted-blocks", "flux") == "permuted-blocks:llama-3.1-8b"
    small = {"height": 480, "width": 832}
    assert published("svg2", "wan", task="i2v", **small) == "svg2:wan-2.1-i2v-480p"
    assert published("svg2", "hunyuan-video", **small) == "svg2:hunyuan-video-480p"
    assert published("svg2", "hunyuan-video") == "svg2:hunyuan-video-720p"


def test_tasks_are_read_from_the_names_of_pipelines() -> None:
    names = {
        "WanPipeline": "t2v",
        "WanImageToVideoPipeline": "i2v",
        "WanImage2VideoModularPipeline": "i2v",
        "Cosmos2VideoToWorldPipeline": "i2v",
        "CosmosTextToWorldPipeline": "t2v",
    }
    assert {name: task_of(name, "video") for name in names} == names
    assert task_of("Cosmos2TextToImagePipeline", "image") == "t2i"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("svg2:nothing", "unknown recipe 'svg2:nothing': choose from svg2:.*, svg2:published"),
        ("svg2:published", "svg2:published depends on the model: name one of svg2:"),
        ("band:published", "unknown recipe 'band:published': band has none"),
        ("sgv2:published", "must end in .yaml"),
    ],
)
def test_unknown_names_are_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message) as raised:
        read_profile(name)
    assert "\n" not in str(raised.value)


def test_a_file_whose_name_has_a_colon_is_a_file(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Profile(SVG2(top_p=0.5)).save("svg2:mine.yaml")
    assert read_profile("svg2:mine.yaml").method == SVG2(top_p=0.5)


def test_pipelines_take_recipes_by_name_and_by_family() -> None:
    pipe = tiny_components.wan()
    session = pipe.enable_sparse_attention(profile="svg2:wan-2.1-i2v-480p")
    assert session.profile == read_profile("svg2:wan-2.1-i2v-480p")
    session = pipe.enable_sparse_attention(profile="svg2:published", precision="int8")
    assert session.profile.provenance["recipe"] == "svg2:wan-2.1-t2v-720p"
    assert session.profile.precision == "int8"
    session = enable_sparse_attention(pipe.transformer, profile="svg2:published")
    assert session.profile.provenance["family"] == "wan"
    hunyuan = tiny_components.hunyuan_video()
    session = hunyuan.enable_sparse_attention(profile="svg2:published")
    assert session.profile.provenance["recipe"] == "svg2:hunyuan-video-720p"


def test_a_family_without_a_recipe_is_refused_and_left_unchanged() -> None:
    pipe = tiny_components.flux()
    before = list(pipe.transformer.attn_processors.values())
    with pytest.raises(InvalidSettings, match="svg2 has no published recipe for family flux: cho"):
        pipe.enable_sparse_attention(profile="svg2:published")
    assert list(pipe.transformer.attn_processors.values()) == before


def test_settings_resolve_the_published_recipe_from_model_and_size() -> None:
    case = RenderSettings("a red circle")
    assert resolve_profile("svg2:published", case) == "svg2:wan-2.1-t2v-720p"
    assert resolve_profile("mine.yaml", case) == "mine.yaml"
    assert not is_published("svg2:wan-2.1-t2v-720p")
    settings = attention_settings("svg2:wan-2.1-t2v-720p", {"method": None}, {"top_p": "0.5"})
    assert settings["knobs"]["query_clusters"] == 300
    assert settings["knobs"]["top_p"] == "0.5"


def test_evaluations_and_nodes_take_recipes() -> None:
    case = RenderSettings("a red circle")
    setting = Setting.parse("svg2:published:top_p=0.8", case)
    assert setting.profile.method == SVG2(
        query_clusters=300, key_clusters=1000, kmeans_iterations=(50, 2), init="random", top_p=0.8
    )
    named = Setting.parse("svg2:wan-2.1-t2v-720p")
    assert named.profile.schedule == read_profile("svg2:wan-2.1-t2v-720p").schedule
    with pytest.raises(InvalidSettings, match="depends on the model"):
        Setting.parse("svg2:published")
    inputs = ("svg-ear", "", 0.2, "full", "full", "off")
    assert make_attention(*inputs, "svg2:wan-2.1-t2v-720p")[0] == read_profile(
        "svg2:wan-2.1-t2v-720p"
    )
    with pytest.raises(InvalidSettings, match="depends on the model: name one of svg2:"):
        make_attention(*inputs, "svg2:published")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_line_lists_recipes_with_their_sources() -> None:
    text = run("methods", "svg2")
    assert "svg2:wan-2.1-t2v-720p" in text
    assert "wan_t2v_720p_sap.sh" in text
    described = json.loads(run("methods", "svg2", "--json"))["recipes"]
    assert [r["name"] for r in described] == [r.name for r in list_recipes(method="svg2")]
    assert described[0]["citation"].startswith("Sparse-VideoGen")
    text = run("models", "hunyuan-video")
    assert "svg2:hunyuan-video-720p" in text
    assert "svg2:wan" not in text
    row = json.loads(run("models", "wan", "--json"))
    assert [r["name"] for r in row["recipes"]] == [r.name for r in list_recipes(family="wan")]
    assert "No recipe was published for it." in run("models", "mochi")
    assert "wan (" in run("models")


def test_the_command_line_renders_with_the_published_recipe(tmp_path) -> None:
    out = str(tmp_path / "clip.mp4")
    shared = ["render", "a red circle", "--size", "smoke", "--dry-run", "-o", out]
    text = run(*shared, "--profile", "svg2:published", "--set", "top_p=0.5")
    assert "svg2:published is svg2:wan-2.1-t2v-720p" in text
    plan = json.loads(text[text.index("{") :])
    assert plan["method"] == "svg2"
    assert plan["knobs"]["key_clusters"] == 1000
    assert plan["knobs"]["top_p"] == "0.5"


@pytest.mark.parametrize("published", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_runs_on_a_tiny_model_of_its_family(published: Recipe) -> None:
    """Some of three steps are sparse, in all layers but the dense ones. A bare transformer runs one step."""
    profile = published.profile()
    schedule = dataclasses.replace(profile.schedule, min_tokens=0)  # tiny clips have few tokens
    family = "wan" if published.family == "any" else published.family
    is_sparse = [not schedule.step_is_dense(step, 3) for step in range(3)]
    if family in tiny_pipelines.TINY:
        tiny = tiny_pipelines.TINY[family]
        target, layers = tiny.build(), len(tiny.blocks)
        enable_sparse_attention(target, profile=profile, schedule=schedule)
        tiny.run(target)
    else:
        row = next(row for row in ROWS if row.family == family)
        target, layers, is_sparse = row.build(), row.layers, [True]
        enable_sparse_attention(target, profile=profile, schedule=schedule)
        row.run(target)
    report = attention_report(target)
    sparse_layers = sum(layer not in schedule.dense_layers for layer in range(layers))
    assert sparse_layers > 0
    assert any(is_sparse)
    assert report.calls["sparse"] == sum(is_sparse) * sparse_layers
    assert report.calls["dense"] == len(is_sparse) * layers - report.calls["sparse"]
    assert report.fallbacks == {}
    assert f"settings from {published.name}" in str(report)


def test_the_shares_of_dense_steps_give_the_published_numbers() -> None:
    """The first sparse step and the dense layers, counted from papers and released scripts."""
    published = {
        "svg2:wan-2.1-t2v-720p": (10, (0,)),
        "svg2:wan-2.1-i2v-720p": (14, (0,)),
        "svg2:wan-2.1-i2v-480p": (8, (0,)),
        "svg2:hunyuan-video-720p": (5, (0,)),
        "svg2:hunyuan-video-480p": (2, ()),
        "svg2:cosmos-1.0-t2v-720p": (10, (0,)),
        "svg:cogvideox-1.5-i2v-768p": (10, (0, 1)),
        "svg:cosmos-1.0-t2v-720p": (10, (0,)),
        "radial:wan-2.1-t2v-768p": (12, (0,)),
        "radial:wan-2.1-t2v-768p-lightx2v": (1, (0,)),
        "radial:wan-2.1-t2v-768p-fusionx": (2, (0,)),
        "radial:wan-2.2-t2v-768p": (11, (0,)),
        "radial:hunyuan-video-768p": (12, ()),
        "xattention:hunyuan-video-720p": (5, ()),
        "svg-ear:wan-2.2-i2v-720p": (10, (0,)),
        "svg-ear:wan-2.2-t2v-720p": (10, (0,)),
        "svg-ear:wan-2.2-t2v-720p-turbo": (10, (0,)),
        "svg-ear:wan-2.1-i2v-720p": (14, (0,)),
        "svg-ear:wan-2.1-t2v-720p": (10, (0,)),
        "svg-ear:hunyuan-video-720p": (10, (0, 20)),
        "svg-ear:hunyuan-video-720p-script": (5, (0,)),
    }
    for name, (first_sparse, dense_layers) in published.items():
        found = find_recipe(name)
        schedule, steps = found.profile().schedule, found.steps or 0
        dense = [schedule.step_is_dense(step, steps) for step in range(steps)]
        assert dense.index(False) == first_sparse, name
        assert schedule.dense_layers == dense_layers, name


def test_the_report_names_a_recipe_only_if_its_method_runs() -> None:
    tiny = tiny_pipelines.TINY["wan"]
    pipe = tiny.build()
    schedule = {"dense_steps": 0.0, "min_tokens": 0}
    pipe.enable_sparse_attention("svg-ear", profile="svg2:published", schedule=schedule)
    tiny.run(pipe)
    assert "settings from" not in str(pipe.attention_report())
