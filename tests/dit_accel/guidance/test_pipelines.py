"""Guidance on the special cases of pipelines: batches, adapters, several pipelines, loops of the user's own."""

import gc

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from support.tiny_pipelines import TINY, embeds, pooled
from support.tiny_transformers import ROWS

import dit_accel
from dit_accel.guidance.guided_forward import select_rows
from dit_accel.runtime.active_sessions import session_of
from dit_accel_pipelines import find_family

EVERY_PIPELINE = pytest.mark.parametrize("name", TINY)


@EVERY_PIPELINE
@pytest.mark.parametrize("cfg", [False, True], ids=["no cfg", "cfg"])
@pytest.mark.parametrize("seeds", [(3, 4), (3, 3)], ids=["other noise", "same noise"])
def test_two_prompts_in_a_batch_equal_single_prompts(name, cfg, seeds) -> None:
    tiny = TINY[name]
    pipe = tiny.build()
    with pipe.enable_perturbed_guidance(2.0, heads=f"{tiny.blocks[1]}:1; {tiny.blocks[-1]}"):
        both, *alone = (tiny.run(pipe, cfg, **arguments) for arguments in tiny.two(cfg, seeds))
    plain = tiny.run(pipe, cfg, **tiny.two(cfg, seeds)[0])
    assert (both - plain).abs().amax(tuple(range(1, both.dim()))).min() > 1e-3
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-4, rtol=1e-4)


@EVERY_PIPELINE
def test_bfloat16_error_grows_little_with_guidance(name) -> None:
    tiny = TINY[name]
    heads, errors = tiny.blocks[1], []
    exact, rounded = tiny.call(True), tiny.call(True)
    for key, value in exact.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            rounded[key] = value.bfloat16()
    for scale in (0.0, 2.0):
        pipe = tiny.build()
        with pipe.enable_perturbed_guidance(scale, heads=heads):
            expected = tiny.run(pipe.to(torch.float32), True, **exact)
            guided = tiny.run(pipe.to(torch.bfloat16), True, **rounded)
        errors.append((guided.float() - expected).norm())
    assert errors[1] < 3 * errors[0]


def test_skip_layer_guidance_of_sd3_is_added() -> None:
    tiny = TINY["sd3"]
    pipe = tiny.build()
    slg = {"skip_guidance_layers": [1], "skip_layer_guidance_scale": 2.0, "num_inference_steps": 1}
    always = {"skip_layer_guidance_start": -0.1, "skip_layer_guidance_stop": 1.0}
    plain = tiny.run(pipe, True, num_inference_steps=1)
    skipped = tiny.run(pipe, True, **slg, **always)
    assert not torch.equal(plain, skipped)
    with pipe.enable_perturbed_guidance(2.0, heads=tiny.blocks[1]):
        guided = tiny.run(pipe, True, num_inference_steps=1)
        both = tiny.run(pipe, True, **slg, **always)
    torch.testing.assert_close(both - skipped, guided - plain, atol=1e-5, rtol=1e-5)


def test_attention_to_an_image_prompt_is_not_perturbed() -> None:
    tiny = TINY["flux"]
    pipe = tiny.build()
    blocks = pipe.transformer.transformer_blocks
    for block in blocks:
        processor = FluxIPAdapterAttnProcessor(32, 32, num_tokens=(4,))
        block.attn.set_processor(processor)
    before = set(pipe.transformer.state_dict())
    image = {"joint_attention_kwargs": {"ip_hidden_states": [torch.randn(1, 4, 32)]}}
    plain = tiny.run(pipe, **image)
    with pipe.enable_perturbed_guidance(2.0, heads=tiny.blocks[1]):
        guided = tiny.run(pipe, **image)
        assert set(pipe.transformer.state_dict()) == before
    assert not torch.equal(guided, plain)
    assert set(pipe.transformer.state_dict()) == before
    assert torch.equal(tiny.run(pipe, **image), plain)


def test_controlnet_residuals_are_halved_as_well() -> None:
    tiny = TINY["sd3"]
    transformer: SD3Transformer2DModel = tiny.build().transformer
    hidden = torch.randn(1, 4, 8, 12).repeat(2, 1, 1, 1)
    arguments = {
        "hidden_states": hidden,
        "encoder_hidden_states": torch.cat([embeds(2), embeds(1)]),
        "pooled_projections": torch.cat([pooled(2), pooled(1)]),
        "timestep": torch.tensor([500.0, 500.0]),
        "block_controlnet_hidden_states": [torch.randn(2, 24, 32)],
    }

    def select_half(value):
        return [v[1:] for v in value] if isinstance(value, list) else value[1:]

    alone = {name: select_half(value) for name, value in arguments.items()}
    with torch.no_grad():
        plain = transformer(**arguments).sample
        with dit_accel.enable_perturbed_guidance(transformer, 2.0, heads=tiny.blocks[1]):
            both = [transformer(**arguments).sample for _ in range(2)][1]
            remarks = dit_accel.attention_report(transformer).remarks
            cond = transformer(**alone).sample
    difference = cond - plain[1:]
    assert difference.abs().max() > 1e-3
    assert not remarks, "each forward computes both predictions"
    torch.testing.assert_close(both, plain + difference, atol=1e-5, rtol=1e-5)


def test_all_forwards_of_a_bare_transformer_are_guided(wan) -> None:
    def forward(seed, transformer=wan.transformer):
        text = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(seed))
        return transformer(torch.ones(1, 8, 2, 4, 4), torch.tensor([500.0]), text).sample

    with torch.no_grad():
        plain = [forward(seed) for seed in range(3)]
        with dit_accel.enable_perturbed_guidance(wan.transformer, 2.0):
            guided = [forward(seed) for seed in range(3)]
        for seed in range(3):
            assert not torch.equal(guided[seed], plain[seed]), seed
        with dit_accel.enable_perturbed_guidance(wan.transformer, 2.0):
            assert torch.equal(forward(2), guided[2]), "the result depends on earlier forwards"


def test_remark_on_an_unknown_context(wan, run_wan) -> None:
    wan.enable_perturbed_guidance(2.0)
    arguments = (torch.ones(1, 8, 2, 4, 4), torch.tensor([500.0]), torch.ones(1, 4, 32))
    with torch.no_grad(), wan.transformer.cache_context("style"):
        wan.transformer(*arguments)
    assert "forwards in the context 'style' are not guided" in session_of(wan).report().remarks


def test_session_of_a_transformer_is_replaced_by_its_pipeline(build_wan, run_wan) -> None:
    pipe = build_wan(two_transformers=True)
    with pipe.enable_perturbed_guidance(2.0, heads="blocks.1", interval=(0.0, 0.9)):
        expected = run_wan(pipe)
    dit_accel.enable_sparse_attention(pipe.transformer, "dense")
    pipe.enable_perturbed_guidance(2.0, heads="blocks.1", interval=(0.0, 0.9))
    assert torch.equal(run_wan(pipe), expected)
    assert session_of(pipe).sparse
    pipe.disable_sparse_attention()
    pipe.disable_perturbed_guidance()
    assert session_of(pipe) is None


def test_cache_of_a_second_transformer_is_refused_before_it_runs(build_wan, run_wan) -> None:
    from support.composition import broadcast

    pipe = build_wan(two_transformers=True)
    pipe.transformer, pipe.transformer_2 = pipe.transformer_2, pipe.transformer
    broadcast(pipe)
    pipe.transformer, pipe.transformer_2 = pipe.transformer_2, pipe.transformer
    pipe.enable_perturbed_guidance(2.0, heads="blocks.1")
    with pytest.raises(RuntimeError, match="one state for all branches"):
        run_wan(pipe)


def make_other_pipeline(pipe):
    other = StableDiffusion3Pipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    return other


@pytest.mark.parametrize("before", [False, True], ids=["no cfg before", "cfg before"])
@pytest.mark.parametrize("cfg", [False, True], ids=["no cfg", "cfg"])
def test_cfg_comes_from_the_pipeline_that_runs(before, cfg) -> None:
    tiny = TINY["sd3"]
    pipe = tiny.build()

    def run(which):
        return tiny.run(which, cfg, **tiny.two(cfg, (3, 4))[0])

    with pipe.enable_perturbed_guidance(2.0, heads=tiny.blocks[1]):
        expected = run(pipe)
        tiny.run(pipe, before)
        assert torch.equal(run(make_other_pipeline(pipe)), expected)


def test_pipeline_that_guidance_was_enabled_on_can_be_deleted() -> None:
    tiny = TINY["sd3"]
    pipe = tiny.build()
    pipe.enable_perturbed_guidance(2.0, heads=tiny.blocks[1], interval=(0.0, 0.5), adaptive=0.001)
    expected = tiny.run(pipe, True)
    pipe = make_other_pipeline(pipe)
    gc.collect()
    assert torch.equal(tiny.run(pipe, True), expected)
    assert pipe.attention_report().guidance["forwards"] == 2


def test_pipeline_gives_the_steps_for_its_transformer(wan, run_wan) -> None:
    with wan.enable_perturbed_guidance(2.0, heads="blocks.1", interval=(0.0, 0.5)):
        expected = run_wan(wan)
    with dit_accel.enable_perturbed_guidance(
        wan.transformer, 2.0, heads="blocks.1", interval=(0.0, 0.5)
    ):
        assert torch.equal(run_wan(wan), expected)


@pytest.fixture
def glm_image():
    """A transformer, and functions that make a cache and write and read the keys of a reference image."""
    module = pytest.importorskip("diffusers.models.transformers.transformer_glm_image")
    row = next(row for row in ROWS if row.family == "glm-image")
    transformer, inputs = row.build(), row.inputs()
    image = {k: v[:1] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    image["encoder_hidden_states"] = image["encoder_hidden_states"][:, :0]

    def write(cache):
        cache.set_mode("write")
        transformer(**image, kv_caches=cache)
        return [layer.k_caches[0].shape[1] for layer in cache.caches]

    def read(cache):
        cache.set_mode("read")
        return transformer(**inputs, kv_caches=cache, return_dict=False)[0]

    with torch.no_grad():
        yield (
            transformer,
            lambda: module.GlmImageKVCache(transformer.config.num_layers),
            write,
            read,
        )


def test_keys_of_reference_images_are_stored_once(glm_image) -> None:
    transformer, new_cache, write, read = glm_image
    clean, cache = new_cache(), new_cache()
    sizes = write(clean)
    with dit_accel.enable_perturbed_guidance(transformer, 2.0, heads="transformer_blocks.0:1"):
        assert write(cache) == sizes
        remarks = dit_accel.attention_report(transformer).remarks
    assert remarks == ["forwards that store keys of reference images are not guided"]
    assert torch.equal(read(cache), read(clean))


def test_guidance_ends_if_nothing_can_be_perturbed(glm_image) -> None:
    transformer, new_cache, write, read = glm_image
    cache = new_cache()
    write(cache)
    plain, forwards = read(cache), []
    with dit_accel.enable_perturbed_guidance(transformer, 2.0, heads="transformer_blocks.1"):
        transformer.proj_out.register_forward_hook(lambda *_: forwards.append(1))
        assert torch.equal(read(cache), plain)
        assert torch.equal(read(cache), plain)
        report = dit_accel.attention_report(transformer)
    assert len(forwards) == 3, "one perturbed forward shows that nothing can be perturbed"
    assert report.guidance["forwards"] == 0
    assert len(report.remarks) == 1
    assert report.remarks[0].startswith("guidance ended: no attention of the chosen heads")


@pytest.mark.parametrize("name", ["bria-fibo", "joyimage-edit-plus"])
def test_padded_text_with_sparse_attention(name) -> None:
    row = next((row for row in ROWS if row.family == name), None)
    if row is None:
        pytest.skip("diffusers has no such transformer")
    transformer, inputs = row.build(), row.inputs()
    hidden = inputs["hidden_states"][:1]
    inputs["hidden_states"] = hidden.repeat(2, *[1] * (hidden.dim() - 1))
    plain, guided = row.run(transformer, inputs), []
    full_selection = dit_accel.SVG2(query_clusters=4, key_clusters=6, top_p=1.0)
    schedule = dit_accel.Schedule(dense_steps=0, min_tokens=0)
    block = f"{next(iter(find_family(transformer).blocks))}.0:1"
    for sparse in (False, True):
        if sparse:
            dit_accel.enable_sparse_attention(transformer, full_selection, schedule=schedule)
        with dit_accel.enable_perturbed_guidance(transformer, 2.0, heads=block):
            guided.append(row.run(transformer, inputs))
            calls = dit_accel.attention_report(transformer).calls
    assert calls["sparse"] > 0
    assert calls["fallback"] == 0
    assert (guided[0] - plain).abs().max() > 1e-3
    torch.testing.assert_close(guided[1], guided[0], atol=1e-4, rtol=1e-4)


def test_select_rows_of_every_kind_of_argument() -> None:
    rows, tensor = slice(1, None), torch.arange(2)
    shapes = [[(1, 2, 2)], [(1, 3, 3), (1, 4, 4)]]
    assert select_rows(tensor, 2, rows).tolist() == [1]
    assert select_rows(shapes, 2, rows) == shapes[1:]
    assert [part.tolist() for part in select_rows([tensor, tensor], 2, rows)] == [[1], [1]]
    assert select_rows({"mask": tensor, "size": (2, 3)}, 2, rows)["size"] == (2, 3)


def test_no_remark_on_a_disabled_precision(wan, run_wan) -> None:
    wan.enable_quantized_attention("int8")
    wan.enable_perturbed_guidance(2.0)
    run_wan(wan)
    assert wan.attention_report().remarks
    wan.disable_quantized_attention()
    run_wan(wan)
    assert not wan.attention_report().remarks
