"""Living with others: shared transformers, foreign hooks, adapters, offload, compiled modules."""

import copy
import functools
import pickle

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig

import dit_accel
from dit_accel import SVG2, Schedule, hooks
from dit_accel.generation.render import render
from dit_accel.generation.settings import RenderSettings
from dit_accel.runtime.active_sessions import session_of

SPARSE = Schedule(dense_steps=0.25, min_tokens=0)
ALWAYS = Schedule(dense_steps=0, min_tokens=0)
COARSE = SVG2(query_clusters=4, key_clusters=12, top_p=0.5, min_key_share=0.0)


@pytest.mark.parametrize("shared", ["bare transformer", "second pipeline"])
def test_interrupted_where_the_session_knows_no_scheduler(wan, run_wan, shared: str) -> None:
    """The session sits on the transformer; a pipeline it does not know runs, and is interrupted."""
    target = wan.transformer if shared == "bare transformer" else type(wan)(**wan.components)
    dit_accel.enable_sparse_attention(target, COARSE, schedule=ALWAYS)
    other = type(wan)(**{**wan.components, "scheduler": copy.deepcopy(wan.scheduler)})
    other.set_progress_bar_config(disable=True)
    expected = run_wan(other)

    def fail(pipe, index, timestep, arguments):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_wan(other, "a blue square", seed=3, callback_on_step_end=fail)
    assert torch.equal(run_wan(other), expected)
    assert dit_accel.attention_report(target).calls["sparse"] == 24


def test_copy_and_pickle_of_an_enabled_transformer_are_refused(wan, run_wan) -> None:
    wan.enable_sparse_attention(COARSE, schedule=SPARSE)
    expected = run_wan(wan)
    with pytest.raises(TypeError, match="disable it first"):
        copy.deepcopy(wan.transformer)
    with pytest.raises(TypeError, match="disable it first"):
        pickle.dumps(wan.transformer._diffusers_hook.get_hook(hooks.HOOK))
    assert torch.equal(run_wan(wan), expected)


def test_forwards_that_others_set_survive(wan, run_wan) -> None:
    """An instance forward from before (accelerate's hooks), and one wrapped around ours."""
    counts, expected = {"before": 0, "after": 0}, run_wan(wan)

    def wrap(name: str) -> None:
        inner = wan.transformer.forward

        @functools.wraps(inner)
        def forward(*arguments, **options):
            counts[name] += 1
            return inner(*arguments, **options)

        wan.transformer.forward = forward

    wrap("before")
    wan.enable_sparse_attention(COARSE, schedule=SPARSE)
    wrap("after")
    run_wan(wan)
    assert counts == {"before": 8, "after": 8}
    wan.disable_sparse_attention()
    assert session_of(wan) is None
    assert torch.equal(run_wan(wan), expected)
    assert counts == {"before": 16, "after": 16}
    wan.enable_sparse_attention(COARSE, schedule=SPARSE)
    assert not torch.equal(run_wan(wan), expected)
    assert wan.attention_report().calls["sparse"] == 18
    wan.disable_sparse_attention()
    assert torch.equal(run_wan(wan), expected)


def test_sessions_on_single_transformers_are_all_disabled(run_wan, build_wan) -> None:
    pipe = build_wan(two_transformers=True)
    expected = run_wan(pipe)
    for transformer in (pipe.transformer, pipe.transformer_2):
        dit_accel.enable_sparse_attention(transformer, COARSE, schedule=ALWAYS)
    pipe.enable_sparse_attention(COARSE, schedule=SPARSE)
    pipe.disable_sparse_attention()
    assert torch.equal(run_wan(pipe), expected)


def test_replaced_processors_are_told(wan, run_wan) -> None:
    wan.enable_sparse_attention(COARSE, schedule=ALWAYS)
    wan.transformer.set_attn_processor(type(wan.transformer.blocks[0].attn2.processor)())
    run_wan(wan)
    report = wan.attention_report()
    assert report.calls == {"dense": 0, "sparse": 0, "fallback": 24}
    assert "the processor of blocks.1.attn1 was replaced: enable again" in report.fallbacks


def test_lora_and_fused_projections_keep_working(wan, run_wan) -> None:
    plain = run_wan(wan)
    adapter = LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    wan.transformer.add_adapter(adapter)
    with_lora = run_wan(wan)
    assert not torch.equal(with_lora, plain)
    full = SVG2(top_p=1.0)
    wan.enable_sparse_attention(full, schedule=ALWAYS)
    torch.testing.assert_close(run_wan(wan), with_lora, rtol=0, atol=1e-4)
    wan.disable_sparse_attention()
    wan.transformer.delete_adapters("default")
    wan.transformer.fuse_qkv_projections()
    wan.enable_sparse_attention(full, schedule=ALWAYS)
    torch.testing.assert_close(run_wan(wan), plain, rtol=0, atol=1e-4)
    assert wan.attention_report().calls["sparse"] == 24


def test_group_offload_keeps_working(wan, run_wan) -> None:
    expected = run_wan(wan)
    options = {"offload_type": "block_level", "num_blocks_per_group": 1}
    apply_group_offloading(wan.transformer, onload_device=torch.device("cpu"), **options)
    wan.enable_sparse_attention(SVG2(top_p=1.0), schedule=ALWAYS)
    torch.testing.assert_close(run_wan(wan), expected, rtol=0, atol=1e-4)
    wan.disable_sparse_attention()
    torch.testing.assert_close(run_wan(wan), expected)


def test_a_compiled_transformer_is_refused_with_the_remedy(wan) -> None:
    wan.transformer = torch.compile(wan.transformer)
    with pytest.raises(ValueError, match="compile_repeated_blocks"):
        wan.enable_sparse_attention(COARSE)


def test_rendering_keeps_what_the_user_enabled(wan) -> None:
    wan.enable_sparse_attention(COARSE, schedule=SPARSE)
    settings = RenderSettings("a", height=64, width=64, frames=5, steps=1, guidance_scale=1.0)
    render(wan, settings)
    session = session_of(wan)
    assert session is not None
    assert (session.profile.method, session.profile.schedule) == (COARSE, SPARSE)
