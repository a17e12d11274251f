"""Quantized attention through the verbs; on a CPU it is simulated, and the report says so."""

from typing import get_args

import pytest
import torch
from support.external_packages import install

from dit_accel import SVG2, InvalidSettings, Profile, Schedule
from dit_accel.core.precision import External, PrecisionResolver, resolve_precision
from dit_accel.doctor import describe_external_kernels
from dit_accel_kernels import EXTERNAL_KERNELS

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


def test_auto_keeps_sparse_calls_full_where_8_bits_are_slower(monkeypatch) -> None:
    monkeypatch.setattr("dit_accel.core.precision.measure_error", lambda *_: 0.01)
    capability = {"cuda:0": (9, 0), "cuda:1": (12, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d: capability[str(d)])
    hopper, blackwell = torch.device("cuda:0"), torch.device("cuda:1")
    resolver, other = PrecisionResolver(), PrecisionResolver()
    assert resolver.resolve_sparse("auto", hopper) == "full"
    assert resolver.resolve("auto", hopper) == "int8-fp8", "dense calls"
    assert resolver.resolve_sparse("int8", hopper) == "int8", "a name is kept"
    assert (resolver.used_sparse("auto"), resolver.used("auto")) == ("full", "int8-fp8")
    assert "auto: full precision in sparse calls, which 8 bits slow on this GPU" in (
        resolver.remarks()
    )
    assert other.resolve_sparse("auto", blackwell) == other.used_sparse("auto") == "int8-fp8"


def test_a_kernel_of_another_package_serves_dense_calls_only(wan, run_wan, monkeypatch) -> None:
    install(monkeypatch, "comfy-kitchen")
    plain = run_wan(wan)
    wan.enable_quantized_attention("comfy-kitchen")
    assert 0 <= relative(run_wan(wan), plain) < 1e-4
    report = wan.attention_report()
    assert report.calls == {"dense": 24, "sparse": 0, "fallback": 0}
    assert report.precision == {"sparse": "full", "dense": "comfy-kitchen"}
    (remark,) = report.remarks
    assert remark.startswith("comfy-kitchen 0.2.40: relative error 0.0000 in its check")
    wan.enable_sparse_attention(COARSE, schedule=EVERYWHERE, precision="int8")
    run_wan(wan)
    report = wan.attention_report()
    assert report.precision == {"sparse": "int8", "dense": "comfy-kitchen"}
    assert report.calls["sparse"] == 24


def test_an_output_really_comes_from_the_other_package(wan, run_wan, monkeypatch) -> None:
    install(monkeypatch, "flash-attn-4", fault=lambda out, _: 1.004 * out[0])
    plain = run_wan(wan)
    wan.enable_sparse_attention("dense", dense_precision="flash-attn-4")
    assert relative(run_wan(wan), plain) > 1e-5


def test_a_kernel_that_fails_its_check_stops_the_run(wan, run_wan, monkeypatch) -> None:
    install(monkeypatch, "comfy-kitchen", fault=lambda out, _: 1.2 * out)
    wan.enable_quantized_attention("comfy-kitchen")
    with pytest.raises(InvalidSettings, match=r"within a relative error of 0\.045, got 0\.200"):
        run_wan(wan)


def test_a_missing_package_is_refused_before_a_run(wan) -> None:
    with pytest.raises(
        InvalidSettings, match="precision: the package of flash-attn must be installed"
    ):
        wan.enable_quantized_attention("flash-attn")
    with pytest.raises(
        InvalidSettings, match=r"dense_precision: the package of flash-attn-4 must be installed"
    ):
        Profile(SVG2(), dense_precision="flash-attn-4")
    with pytest.raises(
        InvalidSettings, match=r"unknown dense_precision 'int9': choose one of full"
    ):
        wan.enable_sparse_attention("svg2", dense_precision="int9")
    with pytest.raises(InvalidSettings, match="unknown precision 'comfy-kitchen'"):
        wan.enable_sparse_attention("svg2", precision="comfy-kitchen")


def test_every_kernel_of_another_package_can_be_requested_and_is_described(monkeypatch) -> None:
    assert set(get_args(External)) == set(EXTERNAL_KERNELS)
    install(monkeypatch, "comfy-kitchen")
    described = describe_external_kernels()
    assert described["comfy-kitchen"] == "0.2.40, not usable: no CUDA device"
    assert described["flash-attn-3"].startswith("not usable: the package of flash-attn-3 must")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("dit_accel.doctor.torch.device", lambda _: torch.empty(0).device)
    monkeypatch.setattr(torch, "bfloat16", torch.float32)
    assert describe_external_kernels()["comfy-kitchen"].startswith("0.2.40, usable as --dense")
