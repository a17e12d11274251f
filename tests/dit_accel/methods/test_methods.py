"""What holds for every method: exactness at full selection, text, odd sizes, batches, freshness."""

import dataclasses

import pytest
import torch
from support.attention_inputs import at_step, attention_call, exact_attention

from dit_accel import (
    METHODS,
    SVG,
    SVG2,
    Band,
    Dense,
    Method,
    Neighborhood,
    PermutedBlocks,
    Profile,
    Radial,
    RasterWindow,
    ReTtention,
    Schedule,
    SpargeAttn,
    SVGEar,
    TopKBlocks,
    XAttention,
)
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel.methods.base import Attended
from dit_accel_pipelines import TokenLayout

ALWAYS = Schedule(dense_steps=0, min_tokens=0)
FULL: tuple[Method, ...] = (
    SVG2(top_p=1.0),
    SVGEar(density=1.0),
    SVGEar(density=1.0, selection="error"),
    ReTtention(density=1.0),
    ReTtention(density=1.0, mode="paper", lam=0.0),
    ReTtention(mask=SVGEar(density=1.0)),
    ReTtention(mask=RasterWindow(window=2.0)),
    SVG(density=1.0, block=16),
    XAttention(threshold=1.0, block=16, stride=4),
    PermutedBlocks(top_p=1.0, block=16),
    SpargeAttn(cdf_threshold=1.0, order="hilbert", query_block=16, key_block=8),
    SpargeAttn(cdf_threshold=0.1, similarity_threshold=1.0, query_block=16, key_block=8),
    TopKBlocks(density=1.0, tile=(2, 2, 2)),
    Neighborhood(density=1.0),
    Radial(decay=1e6, block=1),
    Radial(decay=1e6, block=2, rule="columns", first_frame=False),
    Band(density=1.0),
    RasterWindow(window=2.0),
    SVG2(top_p=1.0, init="random"),
    SVG(density=1.0, block=16, window="published"),
    PermutedBlocks(top_p=1.0, block=8, segment=16),
)
SPARSE: tuple[Method, ...] = (
    SVG2(top_p=0.4, min_key_share=0.1),
    SVGEar(density=0.2),
    ReTtention(density=0.3),
    ReTtention(density=0.3, mode="paper"),
    ReTtention(mask="svg-ear", density=0.3),
    ReTtention(mask=RasterWindow(window=0.3), mode="paper"),
    SVG(density=0.3, block=16),
    XAttention(threshold=0.6, block=16, stride=4),
    PermutedBlocks(top_p=0.6, block=16),
    SpargeAttn(cdf_threshold=0.5, query_block=16, key_block=8),
    SpargeAttn(top_k=0.3, order="hilbert", query_block=16, key_block=8),
    TopKBlocks(density=0.3, tile=(2, 2, 2)),
    Neighborhood(density=0.3, tile=(2, 2, 2)),
    Radial(decay=0.01, block=4),
    Radial(decay=0.01, block=4, rule="columns", first_frame=False),
    Band(density=0.3, block=8),
    RasterWindow(window=0.3),
    SVG(density=0.3, block=16, window="published", first_frame=False),
    PermutedBlocks(top_p=0.4, block=8, segment=16),
)
NAMED = ("mode", "selection", "mask", "order", "similarity_threshold", "tile")
GRIDS = [(6, 4, 4), (5, 7, 3), (1, 9, 11), (13, 1, 1)]


def label(method: Method) -> str:
    knobs = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    told = [f"{k}={v}" for k, v in knobs.items() if k in NAMED]
    return " ".join([method.name, *told])


def grid_id(grid: tuple[int, int, int]) -> str:
    return "x".join(map(str, grid))


def attend(method: Method, call, state=None) -> Attended:
    found = method.attend(call, state or method.new_state(), Ops(Timer()))
    assert found is not None
    return found


def test_every_method_is_covered_here() -> None:
    for cases in (FULL, SPARSE):
        assert {m.name for m in cases} == set(METHODS) - {Dense.name}


@pytest.mark.parametrize(
    "text", [(0, False), (5, True), (5, False)], ids=["alone", "text first", "text last"]
)
@pytest.mark.parametrize("grid", [*GRIDS[:3], (3, 1, 1)], ids=grid_id)
@pytest.mark.parametrize("method", FULL, ids=label)
def test_full_selection_equals_dense(method: Method, grid, text) -> None:
    call = attention_call(TokenLayout(*grid, *text), batch=2)
    out, density = attend(method, call)
    torch.testing.assert_close(out, exact_attention(call), rtol=0, atol=1e-5)
    assert float(density) == pytest.approx(1.0)


@pytest.mark.parametrize("method", FULL, ids=label)
def test_full_selection_renders_as_dense(wan, run_wan, method: Method) -> None:
    expected = run_wan(wan)
    wan.enable_sparse_attention(method, schedule=ALWAYS)
    torch.testing.assert_close(run_wan(wan), expected, rtol=0, atol=1e-4)
    assert wan.attention_report().calls == {"dense": 0, "sparse": 24, "fallback": 0}


@pytest.mark.parametrize("first", [True, False], ids=["text first", "text last"])
@pytest.mark.parametrize("method", SPARSE, ids=label)
def test_text_stays_dense(method: Method, first: bool) -> None:
    """Text rows equal exact attention, and a change of a text value reaches every row."""
    layout = TokenLayout(6, 4, 4, 5, first)
    call = attention_call(layout)
    rows = slice(0, 5) if first else slice(96, 101)
    exact = exact_attention(call)[:, rows]
    out = attend(method, call).out
    torch.testing.assert_close(out[:, rows], exact, rtol=0, atol=1e-5)
    value = call.value.clone()
    value[:, rows] += 1e5
    moved = attend(method, dataclasses.replace(call, value=value)).out
    assert (moved - out).abs().amax(-1).min() > 1e-2


@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
@pytest.mark.parametrize("method", SPARSE, ids=label)
def test_sparse_output_is_finite_at_odd_sizes(method: Method, grid) -> None:
    call = attention_call(TokenLayout(*grid), batch=2)
    state = method.new_state()
    for step in range(3):
        out, density = attend(method, at_step(call, step), state)
        assert out.isfinite().all()
        assert 0 <= float(density) <= 1


@pytest.mark.parametrize("method", SPARSE, ids=label)
def test_batch_entries_do_not_mix(method: Method) -> None:
    both = attention_call(TokenLayout(6, 4, 4), batch=2)
    state, alone = method.new_state(), method.new_state()
    for step in range(2):
        call = at_step(both, step)
        tensors = {n: getattr(call, n)[1:] for n in ("query", "key", "value")}
        one = attend(method, dataclasses.replace(call, **tensors), alone).out
        torch.testing.assert_close(attend(method, call, state).out[1:], one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", SPARSE, ids=label)
def test_the_next_run_equals_the_first(wan, run_wan, method: Method) -> None:
    wan.enable_sparse_attention(method, schedule=ALWAYS)
    first = run_wan(wan)
    run_wan(wan, "a blue square", seed=1)
    assert torch.equal(run_wan(wan), first)


@pytest.mark.parametrize("method", SPARSE, ids=label)
def test_guidance_branches_do_not_mix(wan, run_wan, method: Method) -> None:
    """The conditional branch alone (its latents replayed) is what it is beside the other."""
    seen: dict[str, list[torch.Tensor]] = {"both": [], "alone": []}
    inputs: list[tuple] = []

    def keep(name: str):
        def hook(module, arguments, options, output):
            if module._dit_accel_test_branch == "cond":
                seen[name].append(output[0].clone())
                if name == "both":
                    inputs.append((arguments, dict(options)))

        return hook

    context = wan.transformer.cache_context

    def named(branch, *arguments, **options):
        wan.transformer._dit_accel_test_branch = branch
        return context(branch, *arguments, **options)

    wan.transformer.cache_context = named
    session = wan.enable_sparse_attention(method, schedule=ALWAYS)
    handle = wan.transformer.register_forward_hook(keep("both"), with_kwargs=True)
    run_wan(wan)
    handle.remove()
    handle = wan.transformer.register_forward_hook(keep("alone"), with_kwargs=True)
    for step, (arguments, options) in enumerate(inputs):
        with named("cond", step_index=step, num_inference_steps=len(inputs)):
            wan.transformer(*arguments, **options)
    handle.remove()
    assert len(seen["alone"]) == len(seen["both"]) == 4
    for alone, both in zip(seen["alone"], seen["both"], strict=True):
        assert torch.equal(alone, both)
    session.close()


@pytest.mark.parametrize("method", [*SPARSE, Dense()], ids=label)
def test_profiles_round_trip(tmp_path, method: Method) -> None:
    for name in ("p.yaml", "p.json"):
        profile = Profile(method, ALWAYS, provenance={"model": "tiny-world"})
        profile.save(tmp_path / name)
        assert Profile.load(tmp_path / name) == profile


@pytest.mark.parametrize(
    ("kind", "knobs", "message"),
    [
        (ReTtention, {"mask": "nothing"}, "unknown method 'nothing'"),
        (ReTtention, {"mask": "dense"}, "mask must be a method with a map of its own"),
        (ReTtention, {"mode": "other"}, "mode must be merge or paper"),
        (ReTtention, {"refresh": 0}, "refresh must be at least 1"),
        (XAttention, {"block": 12}, "block must be a multiple of stride 8, got 12"),
        (SVG, {"density": 2.0}, r"density must be in \[0, 1\], got 2.0"),
        (Neighborhood, {"window": (1, 0, 1)}, "window must be three whole numbers above 0"),
        (
            Neighborhood,
            {"tile": (2, 4)},
            r"neighborhood knob tile must be tuple\[int, int, int\], got \(2, 4\)",
        ),
        (SVGEar, {"density": ()}, "one for each head, got an empty sequence"),
        (ReTtention, {"lam": float("nan")}, "re-ttention knob lam: a number must be finite"),
        (Radial, {"decay": 0.0}, "decay must be above 0"),
        (PermutedBlocks, {"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        (Band, {"block": 0}, "block must be at least 1"),
        (
            SpargeAttn,
            {"cdf_threshold": 0.9, "top_k": 0.5},
            "cdf_threshold and top_k exclude each other",
        ),
        (SpargeAttn, {"top_k": 0.0}, r"top_k must be in \(0, 1\]"),
        (SpargeAttn, {"similarity_threshold": -2}, r"similarity_threshold must be in \[-1, 1\]"),
        (SpargeAttn, {"key_block": 0}, "key_block must be at least 1"),
        (SpargeAttn, {"order": "morton"}, "order must be raster or hilbert, got 'morton'"),
        (TopKBlocks, {"density": 0.0}, r"density must be in \(0, 1\]"),
        (TopKBlocks, {"block": 64, "tile": (4, 4, 4)}, "block and tile exclude each other"),
        (TopKBlocks, {"tile": (4, 4)}, "tile must be"),
        (RasterWindow, {"window": 0.0}, r"window must be in \(0, 2\], got 0.0"),
        (RasterWindow, {"window": "all"}, "window must be float"),
    ],
    ids=str,
)
def test_bad_knobs_are_named(kind, knobs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**knobs)


def test_static_plans_are_kept_by_device() -> None:
    call, ops = attention_call(TokenLayout(6, 4, 4)), Ops(Timer())
    method = Neighborhood()
    here = method.plan(call, method.new_state(), ops)
    assert method.plan(call, method.new_state(), ops) is here
    tensors = {n: getattr(call, n).to("meta") for n in ("query", "key", "value")}
    there = method.plan(dataclasses.replace(call, **tensors), method.new_state(), ops)
    assert there.block_map.selected.device.type == "meta"


@pytest.mark.parametrize("frames", [1, 5, 21])
def test_svg_keeps_the_neighbourhood_beside_the_first_frame(frames: int) -> None:
    call = attention_call(TokenLayout(frames, 8, 8))
    plan = SVG(density=0.05, block=16).plan(call, SVG().new_state(), Ops(Timer()))
    own = plan.block_map.to_mask().diagonal(dim1=2, dim2=3)
    assert own.float().mean() > 0.2  # the nearest block of keys is a quarter of a block of queries
    if frames == 1:
        assert float(plan.density) < 0.3
