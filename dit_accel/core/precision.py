"""Precisions of attention: their names, and the one that a device runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast, get_args

import torch

from dit_accel.errors import InvalidSettings, first_line
from dit_accel_kernels import (
    ContractError,
    check_precision,
    find_external_package,
    load_external_attention,
    quantized_attention,
)

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel_kernels import ExternalAttention
    from dit_accel_kernels import Precision as KernelPrecision

Precision = Literal["full", "int8", "int8-fp8", "auto"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
External = Literal["sageattention", "comfy-kitchen", "flash-attn", "flash-attn-3", "flash-attn-4"]
DensePrecision = Precision | External
DENSE_PRECISIONS: tuple[DensePrecision, ...] = (*PRECISIONS, *get_args(External))
AUTO: tuple[KernelPrecision, ...] = ("int8-fp8", "int8")  # fastest first
# Major compute capability on which sparse attention in 8 bits was slower than in bfloat16, measured on an H200.
SLOW_IN_8_BITS = 9
LARGEST_ERROR = {"int8": 0.02, "int8-fp8": 0.045}  # relative L1 error on the inputs of the check


def check_precision_name(argument: str, value: str) -> Precision:
    """Return a precision if its name is known.

    Raises:
        InvalidSettings: With the names that are accepted.
    """
    for precision in PRECISIONS:
        if value == precision:
            return precision
    raise InvalidSettings(f"unknown {argument} {value!r}: choose one of {', '.join(PRECISIONS)}")


def as_external(value: str) -> External | None:
    """Return a name as that of a kernel of another package, or None if it is none."""
    names: tuple[External, ...] = get_args(External)
    return next((name for name in names if name == value), None)


def check_dense_precision(argument: str, value: str) -> DensePrecision:
    """Return a precision of dense calls, or a kernel of another package that is installed.

    Raises:
        InvalidSettings: With the names that are accepted, or with what is missing.
    """
    for precision in DENSE_PRECISIONS:
        if value != precision:
            continue
        if as_external(precision) is not None:
            try:
                find_external_package(precision)
            except ContractError as error:
                raise InvalidSettings(f"{argument}: {error}") from None
        return precision
    known = ", ".join(DENSE_PRECISIONS)
    raise InvalidSettings(f"unknown {argument} {value!r}: choose one of {known}")


@dataclass(frozen=True)
class ResolvedPrecision:
    """The precision that runs, and a remark if it differs from what was requested."""

    precision: KernelPrecision
    remark: str = ""


def resolve_precision(requested: Precision, device: torch.device) -> ResolvedPrecision:
    """Return the precision that a device runs.

    ``"auto"`` becomes the fastest precision that has a kernel on the device and whose error on a small random case
    stays within `LARGEST_ERROR`. Without one it becomes full precision.

    Raises:
        InvalidSettings: If the device cannot run a precision that was requested by name.
    """
    if requested == "auto":
        return _resolve_auto(device)
    try:
        check_precision(requested, device)
    except ContractError as error:
        raise InvalidSettings(str(error)) from None
    simulated = requested != "full" and device.type == "cpu"
    remark = f"{requested} is simulated on the CPU: slower, not faster" if simulated else ""
    return ResolvedPrecision(requested, remark)


def _resolve_auto(device: torch.device) -> ResolvedPrecision:
    if device.type != "cuda":
        return ResolvedPrecision(
            "full", f"auto: full precision, {device.type} has no quantized kernel"
        )
    remarks = []
    for precision in AUTO:
        try:
            error = measure_error(precision, device)
        except Exception as failure:  # a missing compiler, or an architecture without the kernel
            remarks.append(f"{precision}: {type(failure).__name__}: {first_line(failure)}")
            continue
        if error <= LARGEST_ERROR[precision]:
            remark = f"auto: {precision}, relative error {error:.3f} on this device"
            return ResolvedPrecision(precision, remark)
        limit = LARGEST_ERROR[precision]
        remarks.append(f"{precision}: relative error {error:.3f} is above {limit}")
    return ResolvedPrecision("full", "auto: full precision; " + "; ".join(remarks))


@dataclass
class PrecisionResolver:
    """Precisions that run on the device of a session. Each request is resolved once."""

    _resolved: dict[DensePrecision, ResolvedPrecision] = field(default_factory=dict)
    _external: dict[tuple[str, torch.dtype, int], ExternalAttention] = field(default_factory=dict)
    _keeps_sparse_full: bool = False

    def resolve(self, requested: Precision, device: torch.device) -> KernelPrecision:
        """Return the precision that runs."""
        if requested not in self._resolved:
            self._resolved[requested] = resolve_precision(requested, device)
        return self._resolved[requested].precision

    def resolve_sparse(self, requested: Precision, device: torch.device) -> KernelPrecision:
        """Return the precision of a sparse call. ``"auto"`` keeps full precision where 8 bits are slower."""
        if requested == "auto" and is_slow_in_8_bits(device):
            self._keeps_sparse_full = True
            return "full"
        return self.resolve(requested, device)

    def resolve_dense(
        self, requested: DensePrecision, query: Tensor
    ) -> KernelPrecision | ExternalAttention:
        """Return the precision of a dense call, or the kernel of another package after its check.

        Args:
            requested: Precision of dense calls.
            query: The query of the call, ``[..., D]``. Each dtype and head_dim is checked once.

        Raises:
            InvalidSettings: If the kernel fails its check on the device.
        """
        external = as_external(requested)
        if external is None:
            return self.resolve(cast("Precision", requested), query.device)
        key = (external, query.dtype, query.shape[-1])
        if key not in self._external:
            try:
                self._external[key] = load_external_attention(external, query.device, *key[1:])
            except ContractError as error:
                raise InvalidSettings(str(error)) from None
        return self._external[key]

    def used(self, requested: DensePrecision) -> str:
        """Return the precision that ran, or the requested one if nothing ran yet."""
        resolved = self._resolved.get(requested)
        return requested if resolved is None else resolved.precision

    def used_sparse(self, requested: Precision) -> str:
        """Return the precision that sparse calls ran in, or the requested one if nothing ran yet."""
        return "full" if self._keeps_sparse_full and requested == "auto" else self.used(requested)

    def remarks(self) -> list[str]:
        """Return the remarks on precisions that differ from their requests, and on kernels of other packages."""
        resolved = [resolved.remark for resolved in self._resolved.values() if resolved.remark]
        if self._keeps_sparse_full:
            resolved.append("auto: full precision in sparse calls, which 8 bits slow on this GPU")
        external = [
            f"{x.name} {x.version}: relative error {x.error:.4f} in its check on this device"
            for x in self._external.values()
        ]
        return resolved + external


def is_slow_in_8_bits(device: torch.device) -> bool:
    """Return True for a device on which sparse attention was slower in 8 bits than in full precision."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == SLOW_IN_8_BITS


def measure_error(precision: KernelPrecision, device: torch.device) -> float:
    """Return the relative L1 error of quantized attention on a random case with biased keys."""
    generator = torch.Generator("cpu").manual_seed(0)
    query, key, value = (
        torch.randn(1, 2, 300, 64, generator=generator, device="cpu") for _ in range(3)
    )
    key = key + 4 * (torch.arange(64, device="cpu") % 16 == 0)
    inputs = [tensor.to(device) for tensor in (query, key, value)]
    out, _ = quantized_attention(*inputs, precision=precision)
    exact, _ = quantized_attention(*(tensor.cpu() for tensor in inputs), precision="full")
    return float((out.cpu() - exact).abs().sum() / exact.abs().sum())
