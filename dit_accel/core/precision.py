"""Which precision attention runs in: what was asked for, checked and, for ``auto``, decided once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from dit_accel_kernels import Precision as KernelPrecision
from dit_accel_kernels import check_precision, quantized_attention

Precision = Literal["full", "int8", "int8-fp8", "auto"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
AUTO: tuple[KernelPrecision, ...] = ("int8-fp8", "int8")  # fastest first
LARGEST_ERROR = {"int8": 0.02, "int8-fp8": 0.045}  # relative L1 on the check's inputs


def checked_precision(name: str, value: str) -> Precision:
    """The precision that a text names.

    Raises:
        ValueError: saying what is accepted.
    """
    for precision in PRECISIONS:
        if value == precision:
            return precision
    raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(PRECISIONS)}")


@dataclass(frozen=True)
class ResolvedPrecision:
    """The precision that runs, and a remark where it is not simply what was asked for."""

    precision: KernelPrecision
    remark: str = ""


def choose(asked: Precision, device: torch.device) -> ResolvedPrecision:
    """What runs on a device.

    ``auto`` takes the fastest precision whose kernel the device has and whose error on a small
    random case stays within bounds; without one, full precision.

    Raises:
        ContractError: if the device cannot run a precision that was asked for by name.
    """
    if asked != "auto":
        check_precision(asked, device)
        simulated = asked != "full" and device.type == "cpu"
        return ResolvedPrecision(
            asked, f"{asked} is simulated on the CPU: slower, not faster" * simulated
        )
    if device.type != "cuda":
        return ResolvedPrecision(
            "full", f"auto: full precision, {device.type} has no quantized kernel"
        )
    remarks = []
    for precision in AUTO:
        try:
            error = measured_error(precision, device)
        except Exception as failure:  # a compiler that is not there, an architecture refused
            remarks.append(f"{precision}: {type(failure).__name__}: {failure}".splitlines()[0])
            continue
        if error <= LARGEST_ERROR[precision]:
            return ResolvedPrecision(
                precision, f"auto: {precision}, relative error {error:.3f} on this device"
            )
        remarks.append(
            f"{precision}: relative error {error:.3f} is above {LARGEST_ERROR[precision]}"
        )
    return ResolvedPrecision("full", "auto: full precision; " + "; ".join(remarks))


@dataclass
class PrecisionResolver:
    """What asked precisions mean on the device that a session runs on, each decided once."""

    _chosen: dict[Precision, ResolvedPrecision] = field(default_factory=dict)

    def of(self, asked: Precision, device: torch.device) -> KernelPrecision:
        """The precision that runs."""
        if asked not in self._chosen:
            self._chosen[asked] = choose(asked, device)
        return self._chosen[asked].precision

    def ran(self, asked: Precision) -> str:
        """The precision that ran; where none did yet, what was asked for."""
        return self._chosen[asked].precision if asked in self._chosen else asked

    def remarks(self) -> list[str]:
        """On those that are not simply what was asked for."""
        return [chosen.remark for chosen in self._chosen.values() if chosen.remark]

    def clear(self) -> None:
        """Decide anew."""
        self._chosen.clear()


def measured_error(precision: KernelPrecision, device: torch.device) -> float:
    """Relative L1 error of quantized attention on a random case with biased keys."""
    generator = torch.Generator("cpu").manual_seed(0)
    query, key, value = (
        torch.randn(1, 2, 300, 64, generator=generator, device="cpu") for _ in range(3)
    )
    inputs = [
        x.to(device) for x in (query, key + 4 * (torch.arange(64, device="cpu") % 16 == 0), value)
    ]
    out, _ = quantized_attention(*inputs, precision=precision)
    exact, _ = quantized_attention(*(x.cpu() for x in inputs), precision="full")
    return float((out.cpu() - exact).abs().sum() / exact.abs().sum())
