"""svg-ear drops nothing: with one token per cluster it is dense, whatever it attends to exactly."""

import pytest
import torch

from dit_accel import SVG2, Schedule, SVGEar

ALWAYS = Schedule(dense_steps=0, min_tokens=0)


@pytest.mark.parametrize("selection", ["density", "error"])
@pytest.mark.parametrize("second_order", [False, True], ids=["first", "second"])
def test_one_token_per_cluster_is_dense(wan, run_wan, selection: str, second_order: bool) -> None:
    expected = run_wan(wan)
    method = SVGEar(key_clusters=10**6, density=0.2, selection=selection, second_order=second_order)
    wan.enable_sparse_attention(method, schedule=ALWAYS)
    torch.testing.assert_close(run_wan(wan), expected, rtol=0, atol=1e-4)
    assert wan.attention_report().density["sparse_calls"] == pytest.approx(0.2, abs=0.05)


def test_everything_exact_is_dense(wan, run_wan) -> None:
    expected = run_wan(wan)
    wan.enable_sparse_attention(SVGEar(density=1.0), schedule=ALWAYS)
    torch.testing.assert_close(run_wan(wan), expected, rtol=0, atol=1e-4)
    assert wan.attention_report().density["sparse_calls"] == 1.0


def test_centroids_come_nearer_than_dropping(wan, run_wan) -> None:
    expected = run_wan(wan)
    errors = {}
    for method in (SVGEar(density=0.2), SVG2(top_p=1e-6, min_key_share=0.2)):
        wan.enable_sparse_attention(method, schedule=ALWAYS)
        errors[method.name] = (run_wan(wan) - expected).norm()
    assert errors["svg-ear"] < 0.5 * errors["svg2"]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [({"density": 1.5}, "density must be in"), ({"selection": "mass"}, "selection must be")],
    ids=["density", "selection"],
)
def test_bad_knobs_are_named(knobs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SVGEar(**knobs)
