"""What enabling promises: exact pass-through, exact undo, and no memory between runs or pipelines."""

import copy
import gc
from types import SimpleNamespace

import pytest
import torch

import dit_accel
from dit_accel import SVG2, ReTtention, Schedule, hooks
from dit_accel.hooks import layers
from dit_accel.runtime.active_sessions import session_of
from dit_accel_pipelines import UnknownFamily

SPARSE = Schedule(dense_steps=0.25, min_tokens=0)
ALWAYS = Schedule(dense_steps=0, min_tokens=0)
COARSE = SVG2(query_clusters=4, key_clusters=12, top_p=0.5, min_key_share=0.0)


def processors(pipe):
    return [
        module.processor
        for _, module in pipe.transformer.named_modules()
        if hasattr(module, "processor")
    ]


def test_dense_method_is_bit_equal(wan, run_wan) -> None:
    expected = run_wan(wan)
    session = wan.enable_sparse_attention("dense")
    assert torch.equal(run_wan(wan), expected)
    assert session.report().calls == {"dense": 24, "sparse": 0, "fallback": 0}


def test_below_the_crossover_is_bit_equal_and_says_why(wan, run_wan) -> None:
    expected = run_wan(wan)
    wan.enable_sparse_attention("svg2", schedule=Schedule(dense_steps=0.5))
    assert torch.equal(run_wan(wan), expected)
    report = wan.attention_report()
    assert report.calls == {"dense": 12, "sparse": 0, "fallback": 12}
    assert report.fallbacks == {"fewer than 768 tokens": 12}


@pytest.mark.parametrize("batch", [1, 2])
def test_full_selection_equals_dense(wan, run_wan, batch: int) -> None:
    prompts = ["a red circle", "a blue square"][:batch]
    expected = run_wan(wan, prompts)
    wan.enable_sparse_attention(SVG2(top_p=1.0), schedule=Schedule(dense_steps=0, min_tokens=0))
    torch.testing.assert_close(run_wan(wan, prompts), expected, rtol=0, atol=1e-4)
    report = wan.attention_report()
    assert report.calls["sparse"] == 24
    assert report.density == {"sparse_calls": 1.0, "all_calls": 1.0}


def test_autocast_gives_bfloat16_attention_and_float32_plans(wan, run_wan) -> None:
    seen = set()

    class Watched(SVG2):
        def plan(self, call, state, ops):
            seen.add((call.query.dtype, torch.is_autocast_enabled("cpu")))
            return super().plan(call, state, ops)

    class Float(torch.nn.Module):  # as normalisation is under autocast on CUDA
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.float()

    for block in wan.transformer.blocks:
        block.attn1.norm_q = torch.nn.Sequential(block.attn1.norm_q, Float())
    with torch.autocast("cpu", torch.bfloat16):
        expected = run_wan(wan)
        wan.enable_sparse_attention(Watched(top_p=1.0), schedule=ALWAYS)
        found = run_wan(wan)
        wan.transformer.compile_repeated_blocks(backend="aot_eager", fullgraph=True)
        compiled = run_wan(wan)
    assert seen == {(torch.bfloat16, False)}
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)
    torch.testing.assert_close(compiled, expected, rtol=0, atol=0.1)


def test_sparse_differs_and_is_counted(wan, run_wan) -> None:
    expected = run_wan(wan)
    wan.enable_sparse_attention(COARSE, schedule=SPARSE)
    assert not torch.equal(run_wan(wan), expected)
    report = wan.attention_report()
    assert report.calls == {"dense": 6, "sparse": 18, "fallback": 0}
    sparse, every = report.density["sparse_calls"], report.density["all_calls"]
    assert 0 < sparse < 1
    assert every == pytest.approx((18 * sparse + 6) / 24)
    assert set(report.layers) == {f"transformer.blocks.{i}.attn1" for i in range(3)}
    assert set(report.seconds) >= {"attention", "dense", "kmeans", "selection"}


def test_cross_attention_is_left_alone(wan) -> None:
    before = [block.attn2.processor for block in wan.transformer.blocks]
    wan.enable_sparse_attention(COARSE)
    assert all(b.attn2.processor is p for b, p in zip(wan.transformer.blocks, before, strict=True))


def test_disable_restores_objects_and_bits(wan, run_wan) -> None:
    expected, before = run_wan(wan), processors(wan)
    wan.enable_sparse_attention(COARSE, schedule=SPARSE)
    run_wan(wan)
    wan.disable_sparse_attention()
    assert all(a is b for a, b in zip(processors(wan), before, strict=True))
    assert torch.equal(run_wan(wan), expected)
    assert session_of(wan) is None
    assert "forward" not in vars(wan.transformer)
    wan.disable_sparse_attention()  # once more is harmless


def test_enabling_twice_equals_once(wan, run_wan) -> None:
    before = processors(wan)
    wan.enable_sparse_attention(COARSE, schedule=SPARSE)
    once = run_wan(wan)
    wan.enable_sparse_attention(COARSE, schedule=SPARSE)
    assert torch.equal(run_wan(wan), once)
    wan.disable_sparse_attention()
    assert all(a is b for a, b in zip(processors(wan), before, strict=True))


def test_context_manager_disables(wan) -> None:
    with wan.enable_sparse_attention(COARSE):
        assert session_of(wan) is not None
    assert session_of(wan) is None


def test_second_prompt_equals_a_fresh_pipeline(wan, run_wan, build_wan) -> None:
    wan.enable_sparse_attention(COARSE, schedule=SPARSE)
    run_wan(wan, "a red circle")
    second = run_wan(wan, "a blue square", seed=1)
    fresh = build_wan()
    fresh.enable_sparse_attention(COARSE, schedule=SPARSE)
    assert torch.equal(second, run_wan(fresh, "a blue square", seed=1))


def test_two_pipelines_do_not_touch_each_other(run_wan, build_wan) -> None:
    first, second = build_wan(0), build_wan(1)
    expected = run_wan(second)
    first.enable_sparse_attention(COARSE, schedule=SPARSE)
    alone = run_wan(first)
    assert torch.equal(run_wan(second), expected)
    second.enable_sparse_attention(SVG2(top_p=0.3), schedule=SPARSE)
    run_wan(second)
    assert torch.equal(run_wan(first), alone)
    second.disable_sparse_attention()
    assert torch.equal(run_wan(first), alone)
    assert torch.equal(run_wan(second), expected)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("step", [0, 2])
def test_an_exception_leaves_nothing_behind(wan, run_wan, error, step: int) -> None:
    wan.enable_sparse_attention(COARSE, schedule=ALWAYS)
    expected = run_wan(wan, "a red circle")

    def fail(pipe, index, timestep, arguments):
        if index == step:
            raise error
        return arguments

    with pytest.raises(error):
        run_wan(wan, "a blue square", seed=3, callback_on_step_end=fail)
    assert torch.equal(run_wan(wan, "a red circle"), expected)
    assert wan.attention_report().calls["sparse"] == 24


@pytest.mark.parametrize("call", [2, 5, 9])
def test_an_exception_inside_a_layer_leaves_nothing_behind(wan, run_wan, monkeypatch, call) -> None:
    """Interrupted in the middle of a transformer forward, at step 0 and later."""
    plain = run_wan(wan)
    session = wan.enable_sparse_attention(COARSE, schedule=ALWAYS)
    expected, count, attend = run_wan(wan), 0, session.attend

    def interrupted(*arguments):
        nonlocal count
        count += 1
        if count == call:
            raise KeyboardInterrupt
        return attend(*arguments)

    monkeypatch.setattr(session, "attend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_wan(wan, "a blue square", seed=5)
    monkeypatch.undo()
    assert torch.equal(run_wan(wan), expected)
    wan.disable_sparse_attention()
    assert torch.equal(run_wan(wan), plain)


def test_guidance_branches_keep_separate_state(wan, run_wan, monkeypatch) -> None:
    session = wan.enable_sparse_attention(COARSE, schedule=SPARSE)
    seen = {}
    attend = session.attend

    def watch(layer, *arguments):
        out = attend(layer, *arguments)
        states = session._contexts.latest.run.states
        seen[layer.index] = {key.stream[0] for key in states if key.layer == layer.id}
        return out

    monkeypatch.setattr(session, "attend", watch)
    run_wan(wan)
    assert seen == {i: {"cond", "uncond"} for i in range(3)}
    assert not session._contexts.latest.run.states, "state is freed when the call ends"


def test_shape_change_starts_new_state(wan, run_wan) -> None:
    wan.enable_sparse_attention(COARSE, schedule=SPARSE)
    small = run_wan(wan)
    run_wan(wan, height=96)
    assert torch.equal(run_wan(wan), small)


def test_several_videos_per_prompt(wan, run_wan) -> None:
    wan.enable_sparse_attention(COARSE, schedule=SPARSE)
    assert len(run_wan(wan, num_videos_per_prompt=2)) == 2


def test_odd_token_counts(wan, run_wan) -> None:
    expected = run_wan(wan, height=48, width=80, num_frames=1)
    wan.enable_sparse_attention(SVG2(top_p=1.0), schedule=Schedule(dense_steps=0, min_tokens=0))
    out = run_wan(wan, height=48, width=80, num_frames=1)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)


def test_two_transformers(run_wan, build_wan) -> None:
    pipe = build_wan(two_transformers=True)
    expected = run_wan(pipe)
    pipe.enable_sparse_attention(SVG2(top_p=1.0), schedule=Schedule(dense_steps=0, min_tokens=0))
    torch.testing.assert_close(run_wan(pipe), expected, rtol=0, atol=1e-4)
    names = pipe.attention_report().layers
    assert {name.split(".")[0] for name in names} == {"transformer", "transformer_2"}
    pipe.disable_sparse_attention()
    assert torch.equal(run_wan(pipe), expected)


def test_bare_transformer(wan) -> None:
    transformer = wan.transformer
    arguments = {
        "hidden_states": torch.randn(1, 8, 6, 8, 8, generator=torch.Generator().manual_seed(0)),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.zeros(1, 4, 32),
    }
    expected = transformer(**arguments).sample
    full = SVG2(top_p=1.0)
    with dit_accel.enable_sparse_attention(
        transformer, full, schedule=Schedule(min_tokens=0)
    ) as session:
        torch.testing.assert_close(transformer(**arguments).sample, expected, rtol=0, atol=1e-4)
        assert session.report().calls["sparse"] == 3


@pytest.mark.parametrize("method", [COARSE, ReTtention(density=0.3), SVG2(refresh=5)], ids=str)
def test_a_new_run_separates_the_clips_of_a_loop(wan, method) -> None:
    """A one-step model has the same timestep in every clip, so nothing else tells the clips apart."""

    def forward(seed: int) -> torch.Tensor:
        noise = torch.randn(1, 8, 6, 8, 8, generator=torch.Generator().manual_seed(seed))
        with wan.transformer.cache_context("cond"), torch.no_grad():
            return wan.transformer(
                hidden_states=noise,
                timestep=torch.tensor([999.0]),
                encoder_hidden_states=torch.zeros(1, 4, 32),
            ).sample

    with dit_accel.enable_sparse_attention(wan.transformer, method, schedule=ALWAYS):
        alone = forward(1)
    with dit_accel.enable_sparse_attention(wan.transformer, method, schedule=ALWAYS) as session:
        for seed in (0, 2, 1):
            session.new_run()
            clip = forward(seed)
            assert len(session._contexts.latest.run.states) == 3
    assert torch.equal(clip, alone)


def test_users_backend_serves_dense_calls(wan, run_wan) -> None:
    wan.enable_sparse_attention("dense")
    wan.transformer.set_attention_backend("_native_math")
    assert {p._attention_backend for p in processors(wan)} == {"_native_math"}
    assert torch.isfinite(run_wan(wan)).all()
    wan.disable_sparse_attention()
    assert {p._attention_backend for p in processors(wan)} == {"_native_math"}


def test_deepcopy_gives_a_plain_pipeline_part(wan) -> None:
    wan.enable_sparse_attention(COARSE)
    copied = copy.deepcopy(wan.transformer.blocks[0].attn1.processor)
    assert type(copied).__name__ == "WanAttnProcessor"


def test_state_dict_is_unchanged(wan) -> None:
    before = set(wan.transformer.state_dict())
    wan.enable_sparse_attention(COARSE)
    assert set(wan.transformer.state_dict()) == before


def test_thousand_cycles_leak_nothing(wan) -> None:
    def cycle(times: int) -> None:
        for _ in range(times):
            wan.enable_sparse_attention(COARSE)
            wan.disable_sparse_attention()

    cycle(5)
    gc.collect()
    objects = len(gc.get_objects())
    cycle(1000)
    gc.collect()
    assert len(layers._LAYERS) == 0
    assert len(gc.get_objects()) - objects < 200


def test_a_stale_layer_is_one_clear_error() -> None:
    tokens = torch.zeros(1, 4, 1, 8)
    with pytest.raises(RuntimeError, match="uninstalled"):
        torch.ops.dit_accel.attend(tokens, tokens, tokens, None, False, None, torch.tensor(10**9))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ({"attention_mask": torch.zeros(1, 1, 1, 96)}, "attention mask"),
        ({"encoder_hidden_states": torch.zeros(1, 5, 32)}, "queries and keys of different length"),
        ({}, "attention called outside the transformer's forward"),
    ],
    ids=["mask", "lengths", "outside"],
)
def test_what_cannot_be_sparse_falls_back_with_a_reason(wan, kind, reason: str) -> None:
    attention = wan.transformer.blocks[0].attn1
    hidden = torch.randn(1, 96, 32, generator=torch.Generator().manual_seed(0))
    expected = attention(hidden, **kind)
    wan.enable_sparse_attention(COARSE, schedule=SPARSE)
    assert torch.equal(attention(hidden, **kind), expected)
    assert wan.attention_report().fallbacks == {reason: 1}


def shared_sequence(pipe, degree: int, ring: int = 1) -> None:
    """As diffusers marks processors under context parallelism."""
    config = SimpleNamespace(ulysses_degree=degree, ring_degree=ring)
    for block in pipe.transformer.blocks:
        block.attn1.processor._parallel_config = SimpleNamespace(context_parallel_config=config)


def test_ring_attention_is_refused(wan, run_wan) -> None:
    wan.enable_sparse_attention(COARSE)
    shared_sequence(wan, 1, ring=2)
    with pytest.raises(NotImplementedError, match="use ulysses_degree, or disable"):
        run_wan(wan)


def test_what_cannot_share_a_sequence_is_refused(wan, run_wan) -> None:
    wan.enable_sparse_attention(COARSE, guard="on")
    shared_sequence(wan, 2)
    with pytest.raises(RuntimeError, match="guard 'on'"):
        run_wan(wan)
    wan.enable_sparse_attention(COARSE)
    wan.enable_perturbed_guidance(1.0)
    shared_sequence(wan, 2)
    with pytest.raises(RuntimeError, match="guidance does not work under context parallelism"):
        run_wan(wan)


def test_unknown_things_are_refused_and_change_nothing(wan) -> None:
    before = processors(wan)
    with pytest.raises(ValueError, match="unknown method 'svg3': choose one of dense, svg2"):
        wan.enable_sparse_attention("svg3")
    with pytest.raises(ValueError, match="unknown precision 'int3': choose one of full, int8"):
        wan.enable_sparse_attention("svg2", precision="int3")
    with pytest.raises(UnknownFamily, match="register_family"):
        dit_accel.enable_sparse_attention(torch.nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="enable_sparse_attention first"):
        wan.attention_report()
    assert all(a is b for a, b in zip(processors(wan), before, strict=True))


def test_a_processor_that_cannot_be_led_is_refused_and_changes_nothing(wan) -> None:
    class Foreign:
        def __call__(self, attn, hidden_states, *arguments):
            return hidden_states

    session = wan.enable_sparse_attention(COARSE)
    wan.transformer.blocks[2].attn1.processor = Foreign()
    before = processors(wan)
    message = "Foreign calls neither dispatch_attention_fn nor"
    with pytest.raises(hooks.UnsupportedProcessor, match=message):
        wan.enable_sparse_attention("dense")
    assert all(a is b for a, b in zip(processors(wan), before, strict=True))
    assert session_of(wan) is session


def test_a_processor_that_spells_its_attention_otherwise_is_refused(wan) -> None:
    class Spelled:
        def __call__(self, attn, hidden_states, *arguments):
            states = hidden_states[:, None]
            return torch.nn.functional.scaled_dot_product_attention(states, states, states)[:, 0]

    wan.transformer.blocks[0].attn1.processor = Spelled()
    with pytest.raises(hooks.UnsupportedProcessor, match="Spelled calls neither"):
        wan.enable_sparse_attention("dense")
