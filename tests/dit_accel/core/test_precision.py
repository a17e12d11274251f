"""Quantized attention through the verbs; on a CPU it is simulated, and the report says so."""

import pytest
import torch

from dit_accel import SVG2, Schedule
from dit_accel.core.precision import resolve_precision

COARSE = SVG2(query_clusters=4, key_clusters=8, top_p=0.7, min_key_share=0.2)
EVERYWHERE = Schedule(dense_steps=0.0, min_tokens=0)


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("precision", ["int8", "int8-fp8"])
def test_quantized_attention_is_near_dense_and_its_inverse_exact(wan, run_wan, precision) -> None:
    plain = run_wan(wan)
    before = [block.attn1.processor for block in wan.transformer.blocks]
    wan.enable_quantized_attention(precision)
    error = relative(run_wan(wan), plain)
    report = wan.attention_report()
    wan.disable_quantized_attention()
    assert 0 < error < 0.02
    assert report.calls == {"dense": 24, "sparse": 0, "fallback": 0}
    assert report.precision["dense"] == precision
    assert report.remarks == [f"{precision} is simulated on the CPU: slower, not faster"]
    assert all(b.attn1.processor is p for b, p in zip(wan.transformer.blocks, before, strict=True))
    assert torch.equal(run_wan(wan), plain)


@pytest.mark.parametrize("precision", ["int8", "int8-fp8"])
def test_sparse_and_dense_calls_have_precisions_of_their_own(wan, run_wan, precision) -> None:
    schedule = Schedule(dense_steps=0.5, min_tokens=0)
    wan.enable_sparse_attention(COARSE, schedule=schedule)
    full = run_wan(wan)
    wan.enable_sparse_attention(COARSE, schedule=schedule, precision=precision)
    rounded = run_wan(wan)
    report = wan.attention_report()
    assert report.precision == {"sparse": precision, "dense": "full"}
    assert report.calls == {"dense": 12, "sparse": 12, "fallback": 0}
    assert 0 < relative(rounded, full) < 0.05


def test_auto_on_a_cpu_is_full_precision_and_says_why(wan, run_wan) -> None:
    plain = run_wan(wan)
    wan.enable_quantized_attention()
    assert torch.equal(run_wan(wan), plain)
    report = wan.attention_report()
    assert report.precision["dense"] == "full"
    assert report.remarks == ["auto: full precision, cpu has no quantized kernel"]
    assert "auto: full precision" in str(report)


def test_auto_is_decided_by_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {"int8-fp8": 0.3, "int8": 0.01}
    monkeypatch.setattr("dit_accel.core.precision.measure_error", lambda p, _: errors[p])
    chosen = resolve_precision("auto", torch.device("cuda"))
    assert chosen.precision == "int8"
    errors["int8"] = 0.4
    chosen = resolve_precision("auto", torch.device("cuda"))
    assert chosen.precision == "full"
    assert "int8-fp8: relative error 0.300 is above 0.045" in chosen.remark
