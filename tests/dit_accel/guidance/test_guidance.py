"""Guidance on tiny pipelines of every family, against the formula written out."""

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

EVERY = pytest.mark.parametrize("name", TINY)
CFG = pytest.mark.parametrize("cfg", [False, True], ids=["no cfg", "cfg"])
SPARSE = Schedule(dense_steps=0, min_tokens=0)
JOINT = ("hunyuan-video", "cogvideox", "mochi", "flux", "sd3")
ONE_BATCH = ("cogvideox", "ltx", "mochi", "sd3", "pixart")


@pytest.fixture
def tiny(name):
    return TINY[name]


def written_out(tiny, pipe, cfg, heads, *, scale, softness, kind, mode):
    """Latents with ``uncond + g (cond - uncond) + s (cond - perturbed)`` written out: both predictions that
    the pipeline gets are that sum, whose combination is the sum again.
    """
    transformer = pipe.transformer
    family = find_family(transformer)
    modules = dict(family.attention_modules(transformer))
    blocks = {module: name.rsplit(".", 1)[0] for name, module in modules.items()}
    chosen = {module: heads[block] for module, block in blocks.items() if block in heads}
    visual_tokens = []

    def perturb(module, query, key, value, mask):
        size = query.shape[2]
        text = size - visual_tokens[0] if family.joint else 0
        first = name_of(tiny) in ("cogvideox", "flux")
        index = torch.arange(size)
        visual = index >= text if first else index < size - text
        return explicit_attention(
            query, key, value, mask, visual, chosen[module], softness, kind, mode
        )

    maps = ExplicitMaps(perturb)
    forward = transformer.forward
    pending = {}

    def weak(arguments):
        with maps.patch(list(chosen)):
            return forward(**arguments)[0]

    @functools.wraps(forward)
    def guided(*positional, **arguments):
        arguments |= dict(zip(("hidden_states",), positional, strict=True)) if positional else {}
        hidden = arguments["hidden_states"]
        visual_tokens[:] = [family.layout(arguments, transformer.config).visual_tokens]
        out = forward(**arguments)[0]
        if not cfg:
            return (out + scale * (out - weak(arguments)),)
        if name_of(tiny) in ONE_BATCH:
            uncond, cond = out.chunk(2)
            half = {n: half_of(v, len(hidden)) for n, v in arguments.items()}
            both = uncond + 4.0 * (cond - uncond) + scale * (cond - weak(half))
            return (torch.cat([both, both]),)
        if "cond" not in pending:  # the pipeline keeps this object: it is filled in below
            pending["cond"], pending["out"] = out.clone(), out
            pending["weak"] = weak(arguments)
            return (out,)
        cond, returned, perturbed = (pending.pop(n) for n in ("cond", "out", "weak"))
        both = out + 4.0 * (cond - out) + scale * (cond - perturbed)
        returned.copy_(both)
        return (both,)

    transformer.forward = guided
    try:
        return tiny.run(pipe, cfg)
    finally:
        del transformer.forward


def processors_of(pipe):
    modules = find_family(pipe.transformer).attention_modules(pipe.transformer)
    return [module.processor for _, module in modules]


def half_of(value, batch):
    if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == batch:
        return value[batch // 2 :]
    return value


def name_of(tiny):
    return next(name for name, other in TINY.items() if other is tiny)


@EVERY
@CFG
@pytest.mark.parametrize(
    ("kind", "mode", "softness"),
    [("identity", "visual", 0.6), ("uniform", "joint", 1.0), ("mean-query", "visual", 1.0)],
)
def test_equals_the_formula_written_out(name, tiny, cfg, kind, mode, softness) -> None:
    pipe = tiny.build()
    heads = {tiny.blocks[1]: [1], tiny.blocks[-1]: [0, 1]}
    settings = {"softness": softness, "kind": kind, "mode": mode}
    expected = written_out(tiny, pipe, cfg, heads, scale=2.0, **settings)
    spec = f"{tiny.blocks[1]}:1; {tiny.blocks[-1]}"
    arguments = {"softness": softness, "perturbation": kind, "text_mode": mode}
    with pipe.enable_perturbed_guidance(2.0, heads=spec, **arguments):
        found = tiny.run(pipe, cfg)
        report = pipe.attention_report()
    plain = tiny.run(pipe, cfg)
    assert (found - plain).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert report.guidance["forwards"] == 3
    assert report.guidance["shared_blocks"] == 1


@EVERY
@CFG
def test_the_shared_prefix_changes_no_bit(name, tiny, cfg) -> None:
    pipe = tiny.build()
    with pipe.enable_perturbed_guidance(2.0, heads=tiny.blocks[-1]):
        shared = tiny.run(pipe, cfg)
        assert pipe.attention_report().guidance["shared_blocks"] == len(tiny.blocks) - 1
    with pipe.enable_perturbed_guidance(2.0, heads=tiny.blocks[-1], share_prefix=False):
        full = tiny.run(pipe, cfg)
        assert pipe.attention_report().guidance["shared_blocks"] == 0
    if (
        cfg and name in ONE_BATCH
    ):  # a product over two rows of a batch rounds otherwise than over one
        torch.testing.assert_close(shared, full, atol=2e-5, rtol=2e-5)
    else:
        assert torch.equal(shared, full)


@EVERY
def test_nothing_is_left_and_nothing_leaks(name, tiny) -> None:
    pipe = tiny.build()
    processors = processors_of(pipe)
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
    assert all(a is b for a, b in zip(processors, processors_of(pipe), strict=True))
    assert [id(m) for m in pipe.transformer.modules()] == [id(m) for m in modules]
    assert not hasattr(pipe.transformer, "_diffusers_hook")
    assert torch.equal(tiny.run(pipe, True), plain)


@EVERY
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


def test_the_perturbed_branch_may_be_sparser(wan, run_wan) -> None:
    rules = (Rule(branch="cond", dense=True), Rule(branch="uncond", dense=True))
    schedule = Schedule(dense_steps=0, min_tokens=0, rules=rules)
    method = SVG2(query_clusters=4, key_clusters=8, top_p=0.5)
    with wan.enable_sparse_attention(method, schedule=schedule) as session:
        plain = run_wan(wan)
        assert session.report().calls == {"dense": 24, "sparse": 0, "fallback": 0}
        wan.enable_perturbed_guidance(2.0, heads="blocks.1")
        assert not torch.equal(run_wan(wan), plain)
        # two blocks of the perturbed branch run, one of them without attention
        assert session.report().calls == {"dense": 24, "sparse": 4, "fallback": 0}
    wan.disable_perturbed_guidance()
    assert session_of(wan) is None


def test_two_experts_have_their_own_scales(build_wan, run_wan) -> None:
    pipe = build_wan(two_transformers=True)
    scales = {"transformer": 4.0, "transformer_2": 2.0}
    restored = []
    for (
        name,
        scale,
    ) in scales.items():  # s / g on the conditional prediction alone, with the right g
        transformer = getattr(pipe, name)
        chosen = transformer.blocks[1].attn1
        maps = ExplicitMaps(
            lambda _, q, k, v, mask: explicit_attention(
                *(q, k, v, mask), torch.ones(q.shape[2]) > 0, [0, 1], 1.0, "identity", "visual"
            )
        )
        forward, calls = transformer.forward, []

        def guided(
            *, forward=forward, maps=maps, chosen=chosen, calls=calls, scale=scale, **arguments
        ):
            out = forward(**arguments)[0]
            calls.append(1)
            if len(calls) % 2 == 0:
                return (out,)
            with maps.patch([chosen]):
                weak = forward(**arguments)[0]
            return (out + 2.0 / scale * (out - weak),)

        transformer.forward = functools.wraps(forward)(guided)
        restored.append(transformer)
    expected = run_wan(pipe, guidance_scale_2=2.0)
    for transformer in restored:
        del transformer.forward
    plain = run_wan(pipe, guidance_scale_2=2.0)
    with pipe.enable_perturbed_guidance(2.0, heads="blocks.1"):
        found = run_wan(pipe, guidance_scale_2=2.0)
        assert pipe.attention_report().guidance["forwards"] == 4
    assert (found - plain).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(run_wan(pipe, guidance_scale_2=2.0), plain)


def test_rescale_keeps_the_deviation() -> None:
    from dit_accel.guidance.heads import all_heads
    from dit_accel.guidance.perturbed_branch import PerturbedBranch

    model = ModelShape("Toy", {"blocks": 3}, 2, 16)
    branch = PerturbedBranch(
        PerturbedGuidance(rescale=0.5), all_heads(None, model), find_family("WanTransformer3DModel")
    )
    cond, difference = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    for noise in (slice(None), slice(1)):
        found = branch._rescaled(cond, difference, noise)
        for i in range(2):
            ratio = cond[i, noise].std() / (cond + difference)[i, noise].std()
            torch.testing.assert_close(found[i], difference[i] * (0.5 * ratio + 0.5))
    latents = torch.zeros(2, 4, 8, 8)
    assert branch._noise_channels(torch.zeros(2, 8, 8, 8), latents) == slice(4)
    assert branch._noise_channels(torch.zeros(2, 4, 8, 8), latents) == slice(None)


def test_adaptive_scale_falls(wan, run_wan) -> None:
    assert PerturbedGuidance(3.0, adaptive=0.01).scale_at(900.0) == pytest.approx(2.0)
    assert PerturbedGuidance(3.0, adaptive=0.01).scale_at(100.0) == 0.0
    with wan.enable_perturbed_guidance(3.0, heads="blocks.1", adaptive=0.01):
        run_wan(wan)
        timesteps = wan.scheduler.timesteps
        guided = sum(3.0 - 0.01 * (1000.0 - float(t)) > 0 for t in timesteps)
        assert 0 < guided < 4
        assert wan.attention_report().guidance["forwards"] == guided


def test_a_head_sets_settings_hold_unless_given(tmp_path, wan) -> None:
    model = ModelShape.of(wan.transformer, find_family(wan.transformer))
    kept = {"scale": 1.5, "softness": 0.25, "interval": (0.0, 0.5)}
    path = tmp_path / "heads.json"
    HeadSet(model, {("blocks", 2): (1,)}, kept).save(path)
    with wan.enable_perturbed_guidance(heads=path, softness=0.75) as guided:
        assert (guided.settings.scale, guided.settings.softness) == (1.5, 0.75)
        assert guided.settings.interval == (0.0, 0.5)
        assert guided.heads.settings["softness"] == 0.75
    with wan.enable_perturbed_guidance() as guided:
        assert guided.heads.spec() == "blocks.1:*"
        assert guided.settings == PerturbedGuidance()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": -1.0}, "scale must be 0 or more"),
        ({"softness": 1.5}, r"softness must be in \[0, 1\], got 1.5"),
        ({"rescale": -0.1}, r"rescale must be in \[0, 1\]"),
        ({"interval": (0.5, 0.2)}, "interval must be two rising shares"),
        ({"perturbation": "blur"}, "perturbation must be one of identity, uniform, mean-query"),
        ({"text_mode": "text"}, "text_mode must be one of visual, joint"),
        ({"heads": "blocks.7"}, "no block blocks.7"),
    ],
    ids=str,
)
def test_bad_settings_change_nothing(wan, run_wan, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        wan.enable_perturbed_guidance(**arguments)
    assert session_of(wan) is None
    assert issubclass(InvalidSettings, ValueError)


def test_an_exception_in_the_perturbed_forward_leaves_nothing(wan, run_wan, monkeypatch) -> None:
    plain = run_wan(wan)
    with wan.enable_perturbed_guidance(2.0, heads="blocks.1"):
        good = run_wan(wan)
        branch = session_of(wan).guidance
        with monkeypatch.context() as patch:
            patch.setattr(branch, "attend", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run_wan(wan)
        assert not branch.running
        assert torch.equal(run_wan(wan), good)
    assert torch.equal(run_wan(wan), plain)


def test_a_stale_handle_ends_nothing(wan) -> None:
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


def test_an_interval_needs_to_know_the_steps(wan) -> None:
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


def test_no_memory_grows(wan, run_wan) -> None:
    wan.enable_perturbed_guidance(2.0, heads="blocks.2")
    run_wan(wan)
    gc.collect()
    before = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
    for _ in range(3):
        run_wan(wan)
    gc.collect()
    assert sum(isinstance(o, torch.Tensor) for o in gc.get_objects()) <= before


@pytest.mark.gpu
@EVERY
def test_on_a_gpu(name, tiny) -> None:
    pipe = tiny.build()
    differences = []
    for device in ("cpu", "cuda"):
        pipe.to(device)
        plain = tiny.run(pipe, True, device=device)
        with pipe.enable_perturbed_guidance(2.0, heads=f"{tiny.blocks[1]}:1"):
            differences.append((tiny.run(pipe, True, device=device) - plain).cpu())
    expected, found = differences
    assert (found - expected).norm() < 0.05 * expected.norm()
