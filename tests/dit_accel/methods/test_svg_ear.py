"""svg-ear with all selections, budgets and stand-ins: what is dense, what density it meets, and what it refuses."""

import itertools
from typing import Any

import pytest
import torch
from support.attention_inputs import attention_call, exact_attention

from dit_accel import SVG2, AttentionCall, InvalidSettings, Method, Schedule, SVGEar
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel.methods.base import Attended
from dit_accel.runtime.cost_model import min_density
from dit_accel_pipelines import TokenLayout

ALWAYS = Schedule(dense_steps=0, min_tokens=0)
LAYOUT = TokenLayout(5, 7, 9)
SELECTIONS, BUDGETS = ("expansion", "density", "error"), ("shared", "query", "top_p")
SKIPPED: tuple[dict[str, Any], ...] = (
    {"skipped": "expansion"},
    {"skipped": "centroid"},
)


def knobs_of(selection: str, budget: str, skipped: dict[str, Any]) -> dict[str, Any]:
    return {"selection": selection, "budget": budget, **skipped}


KINDS = [knobs_of(*kind) for kind in itertools.product(SELECTIONS, BUDGETS, SKIPPED)]
ALL_KINDS = pytest.mark.parametrize(
    "kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values()))
)


def attend(method: Method, call: AttentionCall) -> Attended:
    attended = method.attend(call, method.new_state(), Ops(Timer()))
    assert attended is not None
    return attended


def a_share(budget: str, share: float) -> dict[str, float]:
    """Return the knobs that make a budget about as large as a share of the pairs."""
    return {"top_p": share, "min_key_share": 0.0} if budget == "top_p" else {"density": share}


@ALL_KINDS
def test_one_token_per_cluster_is_dense(kind: dict[str, Any]) -> None:
    call = attention_call(LAYOUT)
    method = SVGEar(**kind, **a_share(kind["budget"], 0.2), key_clusters=10**6)
    out, density = attend(method, call)
    torch.testing.assert_close(out, exact_attention(call), rtol=0, atol=1e-5)
    assert density < 0.25, "what is skipped is dense too"


@ALL_KINDS
def test_a_budget_for_everything_is_dense(kind: dict[str, Any]) -> None:
    call = attention_call(LAYOUT)
    out, density = attend(SVGEar(**kind, **a_share(kind["budget"], 1.0)), call)
    torch.testing.assert_close(out, exact_attention(call), rtol=0, atol=1e-5)
    assert density == 1.0


@ALL_KINDS
def test_text_is_exact_and_sees_everything(kind: dict[str, Any]) -> None:
    call = attention_call(TokenLayout(4, 6, 7, text_tokens=5))
    out, density = attend(SVGEar(**kind, **a_share(kind["budget"], 0.3)), call)
    torch.testing.assert_close(out[:, -5:], exact_attention(call)[:, -5:], rtol=0, atol=1e-5)
    assert density < 0.6


@pytest.mark.parametrize("skipped", SKIPPED, ids=str)
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("density", [0.0, 0.1, 0.37, (0.05, 0.2, 0.5)], ids=str)
def test_a_shared_budget_meets_its_density(density, selection, skipped) -> None:
    call = attention_call(TokenLayout(8, 10, 13))
    method = SVGEar(density=density, **knobs_of(selection, "shared", skipped))
    expected = sum(method.densities) / len(method.densities)
    assert attend(method, call).density == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("top_p", [0.2, 0.6, 0.9])
def test_top_p_spends_what_svg2_would(top_p: float, share: float, selection: str) -> None:
    """The budget is that of svg2 with twice the reserved share, and the last cluster may cross it."""
    call = attention_call(TokenLayout(8, 10, 13))
    own = SVGEar(selection=selection, budget="top_p", top_p=top_p, min_key_share=share)
    svg2 = SVG2(top_p=top_p, min_key_share=2 * share)
    maps = [m.plan(call, m.new_state(), Ops(Timer())).block_map for m in (own, svg2)]
    sizes = maps[0].key_offsets.diff(dim=-1)[:, :, None]
    spent, allowed = ((m.selected * sizes).sum(-1) for m in maps)
    last = sizes.max()
    assert (spent >= allowed).all()
    assert (spent < allowed + last).all()
    assert not torch.equal(maps[0].selected, maps[1].selected)


def test_stand_ins_come_nearer_than_dropping(wan, run_wan) -> None:
    expected = run_wan(wan)
    errors = {}
    published = SVGEar(selection="error", budget="top_p", top_p=0.3, skipped="centroid")
    for method in (SVGEar(density=0.2), published, SVG2(top_p=1e-6, min_key_share=0.2)):
        wan.enable_sparse_attention(method, schedule=ALWAYS)
        errors[method] = (run_wan(wan) - expected).norm()
    own, paper, dropped = errors.values()
    assert max(own, paper) < 0.5 * dropped


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"density": 1.5}, "density must be in"),
        ({"selection": "mass"}, "selection must be expansion, density or error, got 'mass'"),
        ({"budget": "head"}, "budget must be shared, query or top_p, got 'head'"),
        ({"skipped": "drop"}, "skipped must be centroid or expansion, got 'drop'"),
        ({"budget": "top_p", "top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"budget": "top_p", "min_key_share": -0.1}, r"min_key_share must be in \[0, 1\]"),
        ({"budget": "top_p", "gamma": -1.0}, "gamma must be at least 0, got -1"),
        ({"top_p": 0.5}, "top_p has no effect with budget shared: set budget to top_p, or leave"),
        ({"budget": "query", "min_key_share": 0.0}, "min_key_share has no effect with budget quer"),
        ({"gamma": 0.5}, "gamma has no effect with budget shared: set budget to top_p"),
        (
            {"budget": "top_p", "density": 0.3},
            "density has no effect with budget top_p: set budget to shared or query, or leave it",
        ),
        ({"budget": "top_p", "density": (0.1, 0.2)}, "density has no effect with budget top_p"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_bad_and_idle_knobs_are_named_in_one_line(knobs, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message) as raised:
        SVGEar(**knobs)
    assert "\n" not in str(raised.value)


def test_knobs_at_their_default_are_no_reason_to_refuse() -> None:
    assert SVGEar(top_p=0.9, min_key_share=0.1, gamma=1.0) == SVGEar()
    assert SVGEar(budget="top_p", density=0.15) == SVGEar(budget="top_p")


def test_the_cost_model_knows_the_smallest_density_of_each_budget() -> None:
    assert min_density(SVGEar(density=(0.3, 0.2))) == 0.2
    assert min_density(SVGEar(density=0.3, budget="query")) == 0.3
    assert min_density(SVGEar(budget="top_p", min_key_share=0.05)) == 0.1
    assert min_density(SVGEar(budget="top_p", min_key_share=0.8)) == 1.0
