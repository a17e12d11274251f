"""Guidance on tiny pipelines of every family equals its formula."""

import functools
import gc

import pytest
import torch
from support.explicit_maps import ExplicitMaps, explicit_attention
from support.tiny_pipelines import TINY

import dit_accel
from dit_accel import SVG2, HeadSet, Rule, Schedule
from dit_accel.errors import InvalidSettings
from dit_accel.guidance import ModelShape, PerturbedGuidance
from dit_accel.runtime.active_sessions import session_of
from dit_accel_pipelines import find_family

EVERY_PIPELINE = pytest.mark.parametrize("name", TINY)
CFG = pytest.mark.parametrize("cfg", [False, True], ids=["no cfg", "cfg"])
SPARSE = Schedule(dense_steps=0, min_tokens=0)
JOINT = ("hunyuan-video", "cogvideox", "mochi", "flux", "sd3")
BATCHED_CFG = ("cogvideox", "ltx", "mochi", "sd3", "pixart", "hunyuan-dit")


@pytest.fixture
def tiny(name):
    return TINY[name]


def run_formula(tiny, pipe, cfg, heads, *, scale, softness, kind, mode):
    """Return latents of a run whose predictions are ``uncond + g (cond - uncond) + s (cond - perturbed)``.

    The pipeline gets that sum as both of its predictions, so its own combination of them is the sum again.
    """
    transformer = pipe.transformer
    family = find_family(transformer)
    modules = dict(family.attention_modules(transformer))
    blocks = {module: name.rsplit(".", 1)[0] for name, module in modules.items()}
    heads_of = {module: heads[block] for module, block in blocks.items() if block in heads}
    visual_tokens = []

    def perturb(module, query, key, value, mask):
        size = query.shape[2]
        text = size - visual_tokens[0] if family.joint else 0
        first = find_name(tiny) in ("cogvideox", "flux")
        index = torch.arange(size)
        visual = index >= text if first else index < size - text
        return explicit_attention(
            query, key, value, mask, visual, heads_of[module], softness, kind, mode
        )

    maps = ExplicitMaps(perturb)
    forward = transformer.forward
    pending = {}

    def predict_perturbed(arguments):
        with maps.patch(list(heads_of)):
            return forward(**arguments)[0]

    @functools.wraps(forward)
    def guided(*positional, **arguments):
        arguments |= dict(zip(("hidden_states", "timestep"), positional, strict=False))
        hidden = arguments["hidden_states"]
        visual_tokens[:] = [family.layout(arguments, transformer.config).visual_tokens]
        out = forward(**arguments)[0]
        if not cfg:
            return (out + scale * (out - predict_perturbed(arguments)),)
        if find_name(tiny) in BATCHED_CFG:
            uncond, cond = out.chunk(2)
            half = {n: select_half(v, len(hidden)) for n, v in arguments.items()}
            perturbed = predict_perturbed(half)
            both = uncond + 4.0 * (cond - uncond) + scale * (cond - perturbed)
            return (torch.cat([both, both]),)
        # The pipeline keeps this tensor. It is filled in below.
        if "cond" not in pending:
            pending["cond"], pending["out"] = out.clone(), out
            pending["perturbed"] = predict_perturbed(arguments)
            return (out,)
        cond, returned, perturbed = (pending.pop(n) for n in ("cond", "out", "perturbed"))
        both = out + 4.0 * (cond - out) + scale * (cond - perturbed)
        returned.copy_(both)
        return (both,)

    transformer.forward = guided
    try:
        return tiny.run(pipe, cfg)
    finally:
        del transformer.forward


def list_processors(pipe):
    modules = find_family(pipe.transformer).attention_modules(pipe.transformer)
    return [module.processor for _, module in modules]


def select_half(value, batch):
    if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == batch:
        return value[batch // 2 :]
    return value


def find_name(tiny):
    return next(name for name, other in TINY.items() if other is tiny)


@EVERY_PIPELINE
@CFG
@pytest.mark.parametrize(
    ("kind", "mode", "softness"),
    [("identity", "visual", 0.6), ("uniform", "joint", 1.0), ("mean-query", "visual", 1.0)],
)
def test_equals_the_formula(name, tiny, cfg, kind, mode, softness) -> None:
    pipe = tiny.build()
    heads = {tiny.blocks[1]: [1], tiny.blocks[-1]: [0, 1]}
    settings = {"softness": softness, "kind": kind, "mode": mode}
    expected = run_formula(tiny, pipe, cfg, heads, scale=2.0, **settings)
    spec = f"{tiny.blocks[1]}:1; {tiny.blocks[-1]}"
    arguments = {"softness": softness, "perturbation": kind, "text_mode": mode}
    with pipe.enable_perturbed_guidance(2.0, heads=spec, **arguments):
        guided = tiny.run(pipe, cfg)
        report = pipe.attention_report()
    plain = tiny.run(pipe, cfg)
    assert (guided - plain).abs().max() > 1e-3
    torch.testing.assert_close(guided, expected, atol=1e-4, rtol=1e-4)
    assert report.guidance["forwards"] == 3
    assert report.guidance["shared_blocks"] == 1


@EVERY_PIPELINE
@CFG
def test_shared_prefix_changes_no_bit(name, tiny, cfg) -> None:
    pipe = tiny.build()
    with pipe.enable_perturbed_guidance(2.0, heads=tiny.blocks[-1]):
        shared = tiny.run(pipe, cfg)
        assert pipe.attention_report().guidance["shared_blocks"] == len(tiny.blocks) - 1
    with pipe.enable_perturbed_guidance(2.0, heads=tiny.blocks[-1], share_prefix=False):
        full = tiny.run(pipe, cfg)
        assert pipe.attention_report().guidance["shared_blocks"] == 0
    # Matrix products of two rows round differently from products of one row.
    if cfg and name in BATCHED_CFG:
        torch.testing.assert_close(shared, full, atol=2e-5, rtol=2e-5)
    else:
        assert torch.equal(shared, full)


@EVERY_PIPELINE
def test_disabling_restores_the_pipeline(name, tiny) -> None:
    pipe = tiny.build()
    processors = list_processors(pipe)
    modules = list(pipe.transformer.modules())
    plain = tiny.run(pipe, True)
    for arguments in ({"scale": 0.0}, {"scale": 2.0, "softness": 0.0}):
        with pipe.enable_perturbed_guidance(**arguments, heads=tiny.blocks[1]):
            assert torch.equal(tiny.run(pipe, True), plain)
            assert pipe.attention_report().guidance["forwards"] == 0
    with pipe.enable_perturbed_guidance(2.0, heads=tiny.blocks[1], interval=(0.0, 0.34)):
        first = tiny.run(pipe, True)
        assert pipe.attention_report().guidance["forwards"] == 2
        assert not torch.equal(first, plain)
    assert all(a is b for a, b in zip(processors, list_processors(pipe), strict=True))
    assert [id(m) for m in pipe.transformer.modules()] == [id(m) for m in modules]
    assert not hasattr(pipe.transformer, "_diffusers_hook")
    assert torch.equal(tiny.run(pipe, True), plain)


@EVERY_PIPELINE
def test_with_sparse_attention_in_any_order(name, tiny) -> None:
    pipe = tiny.build()
    method = SVG2(query_clusters=4, key_clusters=6, top_p=0.6)
    pipe.enable_sparse_attention(method, schedule=SPARSE)
    sparse = tiny.run(pipe, True)
    pipe.enable_perturbed_guidance(2.0, heads=tiny.blocks[1])
    both = tiny.run(pipe, True)
    calls = pipe.attention_report().calls
    if name != "hunyuan-video":  # its padded text is a mask, which stays dense
        assert calls["sparse"] > 0
        assert calls["dense"] == calls["fallback"] == 0
    pipe.disable_sparse_attention()
    guided = tiny.run(pipe, True)
    assert pipe.attention_report().calls["sparse"] == 0
    pipe.enable_sparse_attention(method, schedule=SPARSE)
    assert torch.equal(tiny.run(pipe, True), both)
    pipe.disable_perturbed_guidance()
    assert torch.equal(tiny.run(pipe, True), sparse)
    pipe.disable_sparse_attention()
    assert session_of(pipe) is None
    assert not torch.equal(guided, both) or name == "hunyuan-video"


def test_perturbed_branch_can_be_sparser(wan, run_wan) -> None:
    rules = (Rule(branch="cond", dense=True), Rule(branch="uncond", dense=True))
    schedule = Schedule(dense_steps=0, min_tokens=0, rules=rules)
    method = SVG2(query_clusters=4, key_clusters=8, top_p=0.5)
    with wan.enable_sparse_attention(method, schedule=schedule) as session:
        plain = run_wan(wan)
        assert session.report().calls == {"dense": 24, "sparse": 0, "fallback": 0}
        wan.enable_perturbed_guidance(2.0, heads="blocks.1")
        assert not torch.equal(run_wan(wan), plain)
        # Two blocks of the perturbed branch run. One of them needs no attention.
        assert session.report().calls == {"dense": 24, "sparse": 4, "fallback": 0}
    wan.disable_perturbed_guidance()
    assert session_of(wan) is None


def test_two_transformers_with_their_own_guidance_scales(build_wan, run_wan) -> None:
    pipe = build_wan(two_transformers=True)
    scales = {"transformer": 4.0, "transformer_2": 2.0}
    restored = []
    # The conditional prediction gets s / g times the difference, with the g of its transformer.
    for name, scale in scales.items():
        transformer = getattr(pipe, name)
        attention = transformer.blocks[1].attn1
        maps = ExplicitMaps(
            lambda _, q, k, v, mask: explicit_attention(
                *(q, k, v, mask), torch.ones(q.shape[2]) > 0, [0, 1], 1.0, "identity", "visual"
            )
        )
        forward, calls = transformer.forward, []

        def guided(
            *,
            forward=forward,
            maps=maps,
            attention=attention,
            calls=calls,
            scale=scale,
            **arguments,
        ):
            out = forward(**arguments)[0]
            calls.append(1)
            if len(calls) % 2 == 0:
                return (out,)
            with maps.patch([attention]):
                perturbed = forward(**arguments)[0]
            return (out + 2.0 / scale * (out - perturbed),)

        transformer.forward = functools.wraps(forward)(guided)
        restored.append(transformer)
    expected = run_wan(pipe, guidance_scale_2=2.0)
    for transformer in restored:
        del transformer.forward
    plain = run_wan(pipe, guidance_scale_2=2.0)
    with pipe.enable_perturbed_guidance(2.0, heads="blocks.1"):
        guided = run_wan(pipe, guidance_scale_2=2.0)
        assert pipe.attention_report().guidance["forwards"] == 4
    assert (guided - plain).abs().max() > 1e-2
    torch.testing.assert_close(guided, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(run_wan(pipe, guidance_scale_2=2.0), plain)


def test_adaptive_scale_falls(wan, run_wan) -> None:
    assert PerturbedGuidance(3.0, adaptive=0.01).compute_scale(900.0) == pytest.approx(2.0)
    assert PerturbedGuidance(3.0, adaptive=0.01).compute_scale(100.0) == 0.0
    with wan.enable_perturbed_guidance(3.0, heads="blocks.1", adaptive=0.01):
        run_wan(wan)
        timesteps = wan.scheduler.timesteps
        guided = sum(3.0 - 0.01 * (1000.0 - float(t)) > 0 for t in timesteps)
        assert 0 < guided < 4
        assert wan.attention_report().guidance["forwards"] == guided


def test_settings_of_a_head_set_are_defaults(tmp_path, wan) -> None:
    model = ModelShape.from_transformer(wan.transformer, find_family(wan.transformer))
    settings = {"scale": 1.5, "softness": 0.25, "interval": (0.0, 0.5)}
    path = tmp_path / "heads.json"
    HeadSet(model, {("blocks", 2): (1,)}, settings).save(path)
    with wan.enable_perturbed_guidance(heads=path, softness=0.75) as guided:
        assert (guided.settings.scale, guided.settings.softness) == (1.5, 0.75)
        assert guided.settings.interval == (0.0, 0.5)
        assert guided.heads.settings["softness"] == 0.75
    with wan.enable_perturbed_guidance() as guided:
        assert guided.heads.to_spec() == "blocks.1:*"
        assert guided.settings == PerturbedGuidance()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": -1.0}, "scale must be 0 or more"),
        ({"softness": 1.5}, r"softness must be in \[0, 1\], got 1.5"),
        ({"rescale": -0.1}, r"rescale must be in \[0, 1\]"),
        ({"interval": (0.5, 0.2)}, "interval must be two rising fractions"),
        ({"perturbation": "blur"}, "perturbation must be one of identity, uniform, mean-query"),
        ({"text_mode": "text"}, "text_mode must be one of visual, joint"),
        ({"heads": "blocks.7"}, "no block blocks.7"),
    ],
    ids=str,
)
def test_invalid_settings_change_nothing(wan, run_wan, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        wan.enable_perturbed_guidance(**arguments)
    assert session_of(wan) is None
    assert issubclass(InvalidSettings, ValueError)


def test_exception_in_the_perturbed_forward_leaves_no_trace(wan, run_wan, monkeypatch) -> None:
    plain = run_wan(wan)
    with wan.enable_perturbed_guidance(2.0, heads="blocks.1"):
        good = run_wan(wan)
        branch = session_of(wan)._contexts.latest.guidance
        with monkeypatch.context() as patch:
            patch.setattr(branch, "attend", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run_wan(wan)
        assert not branch.running
        assert torch.equal(run_wan(wan), good)
    assert torch.equal(run_wan(wan), plain)


def test_replaced_handle_ends_nothing(wan) -> None:
    first = wan.enable_perturbed_guidance(1.0)
    second = wan.enable_perturbed_guidance(2.0)
    first.close()
    assert session_of(wan).guidance.settings.scale == 2.0
    wan.enable_sparse_attention("dense")
    second.close()
    assert session_of(wan).guidance is None
    second.close()
    wan.disable_sparse_attention()
    assert session_of(wan) is None
    wan.disable_perturbed_guidance()


def test_interval_needs_the_number_of_steps(wan) -> None:
    transformer = wan.transformer
    arguments = {
        "hidden_states": torch.randn(1, 8, 2, 4, 4),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 4, 32),
    }
    with torch.no_grad():
        plain = transformer(**arguments).sample
        with dit_accel.enable_perturbed_guidance(transformer, 2.0):
            assert not torch.equal(transformer(**arguments).sample, plain)
        with (
            dit_accel.enable_perturbed_guidance(transformer, 2.0, interval=(0, 0.5)),
            pytest.raises(RuntimeError, match="needs the number of steps"),
        ):
            transformer(**arguments)
        assert torch.equal(transformer(**arguments).sample, plain)


def test_runs_leak_no_tensors(wan, run_wan) -> None:
    wan.enable_perturbed_guidance(2.0, heads="blocks.2")
    run_wan(wan)
    gc.collect()
    before = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
    for _ in range(3):
        run_wan(wan)
    gc.collect()
    assert sum(isinstance(o, torch.Tensor) for o in gc.get_objects()) <= before


@pytest.mark.gpu
@EVERY_PIPELINE
def test_on_a_gpu(name, tiny) -> None:
    pipe = tiny.build()
    differences = []
    for device in ("cpu", "cuda"):
        pipe.to(device)
        plain = tiny.run(pipe, True, device=device)
        with pipe.enable_perturbed_guidance(2.0, heads=f"{tiny.blocks[1]}:1"):
            differences.append((tiny.run(pipe, True, device=device) - plain).cpu())
    on_cpu, on_gpu = differences
    assert (on_gpu - on_cpu).norm() < 0.05 * on_cpu.norm()
