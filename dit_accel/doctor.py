"""Examine this machine: versions, devices and what dit_accel would use, with each op checked against its reference."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from dit_accel.core.schedule import crossover_tokens
from dit_accel.errors import InvalidSettings, RunFailed
from dit_accel.extensions import load_extension
from dit_accel.io.video import H264, VP9, Codec, require_encoder, require_ffmpeg
from dit_accel.methods import SVG2
from dit_accel.runtime.cost_model import Rates, Work, find_rates, measured_rates_path
from dit_accel_assets import tiny_world_path
from dit_accel_kernels import (
    EXTERNAL_KERNELS,
    BlockMap,
    ContractError,
    Precision,
    Skipped,
    find_external_package,
    group_by_label,
    kmeans,
    load_external_attention,
    quantized_attention,
    sparse_attention,
    sparse_attention_reference,
    strided_centroids,
)
from dit_accel_kernels.cpu.compiled import load_library

PACKAGES = (
    "dit_accel",
    "torch",
    "triton",
    "diffusers",
    "transformers",
    "accelerate",
    "lpips",
    "torchmetrics",
)


def examine() -> dict[str, dict[str, Any]]:
    """Return findings by section: versions, devices, tools, weights, checks, rates, and what will be used."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _find_version(name) for name in PACKAGES},
        },
        "devices": describe_devices(),
        "tools": {
            "C compiler (Triton's launcher)": _find_compiler(),
            "C++ compiler (torch.compile on CPU)": shutil.which("g++")
            or shutil.which("clang++")
            or "none found",
            "sparse attention on a CPU": _describe_cpu_kernel(),
            **describe_ffmpeg(),
        },
        "weights of metrics": describe_metrics(),
        "bundled model": {"tiny-world": _check_tiny_world()},
        "checks": {
            name: verdict
            for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else []))
            for name, verdict in check_ops(device).items()
        },
        "kernels of other packages": describe_external_kernels(),
        "rates": describe_rates(),
        "will be used": {
            "sparse attention": "Triton kernels"
            if torch.cuda.is_available()
            else f"{_describe_cpu_kernel()}; quantized precisions are simulated",
            "crossover on cpu": f"{crossover_tokens('cpu')} tokens; shorter calls run dense",
            "crossover on cuda": f"{crossover_tokens('cuda')} tokens; shorter calls run dense",
            "dense attention": "the pipeline's own backend, unchanged",
        },
    }


def describe_external_kernels() -> dict[str, str]:
    """Return for each kernel of another package whether it is installed, and passes its check on the CUDA device.

    The check is in bfloat16 at head_dim 64 and 128. None of these packages is needed.
    """
    return {name: _describe_external_kernel(name) for name in EXTERNAL_KERNELS}


def _describe_external_kernel(name: str) -> str:
    try:
        found, _ = find_external_package(name)
        if not torch.cuda.is_available():
            return f"{found}, not usable: no CUDA device"
        kernels = [
            load_external_attention(name, torch.device("cuda"), torch.bfloat16, head_dim)
            for head_dim in (64, 128)
        ]
    except ContractError as error:
        return f"not usable: {error}"
    largest = max(kernel.error for kernel in kernels)
    return f"{found}, usable as --dense-precision {name}, relative error {largest:.4f}"


def describe_ffmpeg() -> dict[str, str]:
    """Return where ffmpeg is, and which of the encoders that we use work."""
    try:
        found = {"ffmpeg": require_ffmpeg()}
    except RunFailed as error:
        return {"ffmpeg": str(error)}
    users = {"libx264 (MP4 files)": H264, "libvpx-vp9 (videos on pages)": VP9}
    return found | {name: _check_encoder(codec) for name, codec in users.items()}


def describe_metrics() -> dict[str, str]:
    """Return where the weights of the learned metrics are, or what is missing."""
    try:
        found: dict[str, str] = load_extension("comparison").find_weights()
    except RunFailed as error:
        return {"LPIPS, CLIP score, PickScore": str(error)}
    return found


def _check_encoder(codec: Codec) -> str:
    try:
        require_encoder(codec)
    except RunFailed as error:
        return f"not usable: {error}"
    return "usable"


def describe_rates() -> dict[str, str]:
    """Return the rates that the cost model predicts from, and its predictions for some sizes, by device and dtype."""
    return {
        f"{device} {dtype}": _describe_rate(device, dtype)
        for device in ("cpu", "cuda")
        for dtype in ("float32", "bfloat16")
    }


def _describe_rate(device: str, dtype: str) -> str:
    try:
        rates = find_rates(device, dtype)
    except InvalidSettings as error:
        return str(error)
    if rates is None:
        return "not measured: run `dit-accel bench rates`"
    origin = (
        "measured on this machine" if measured_rates_path(device, dtype).is_file() else "bundled"
    )
    sizes = ", ".join(f"{n}: {_predict_speedup(rates, n):.2f}" for n in (1024, 4096, 16384))
    return (
        f"{origin}{rates.caveat}; dense by {rates.backend}; "
        f"svg2 at density 0.15, speed-up by tokens: {sizes}"
    )


def _predict_speedup(rates: Rates, tokens: int) -> float:
    return rates.speedup("svg2", Work(4, tokens, 64, 0.15, *SVG2().clusters(tokens)))


def describe_devices() -> dict[str, str]:
    """Return a line for the CPU and one for each CUDA device."""
    described = {
        "cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    }
    if not torch.cuda.is_available():
        return described | {"cuda": "none"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        described[f"cuda:{index}"] = (
            f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"
        )
    return described


def check_ops(device: str) -> dict[str, str]:
    """Run every op on a device on a small random case, and compare it with its float32 reference on the CPU.

    Returns:
        name of the op and device, to ``usable`` or ``WRONG`` with the largest difference, or ``not usable`` with the
        error.
    """
    return {
        f"{name} on {device}": _check_op(op, tolerance, device)
        for name, (op, tolerance) in OPS.items()
    }


def _check_op(op: Callable[..., Tensor], tolerance: float, device: str) -> str:
    with torch.device("cpu"):
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.randn(1, 2, 197, 64, generator=generator) for _ in range(3)]
        labels = [torch.randint(0, 5, (1, 2, 197), generator=generator) for _ in range(2)]
        selected = torch.rand(1, 2, 5, 5, generator=generator) > 0.5
    try:
        actual = op(*(x.to(device) for x in (*tensors, *labels, selected)), False)
    # Whatever is wrong with the device is the finding.
    except Exception as failure:
        return f"not usable: {type(failure).__name__}: {failure}".splitlines()[0]
    error = float((actual.cpu() - op(*tensors, *labels, selected, True)).abs().max())
    verdict = "usable" if error <= tolerance else "WRONG"
    return f"{verdict}, largest difference from the reference {error:.1e}"


def _build_map(query_labels: Tensor, key_labels: Tensor, selected: Tensor) -> BlockMap:
    return BlockMap(selected, *group_by_label(query_labels, 5), *group_by_label(key_labels, 5))


def _sparse(precision: Precision, skipped: Skipped | None = None) -> Callable[..., Tensor]:
    def op(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, s: Tensor, exact: bool) -> Tensor:
        attend = sparse_attention_reference if exact else sparse_attention
        return attend(q, k, v, _build_map(a, b, s), precision=precision, skipped=skipped)[0]

    return op


def _dense(precision: Precision) -> Callable[..., Tensor]:
    def op(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
        return quantized_attention(q, k, v, precision=precision)[0]

    return op


def _kmeans(q: Tensor, k: Tensor, *_: Any) -> Tensor:
    return kmeans(k, strided_centroids(q, 5), 2)[1]


OPS: dict[str, tuple[Callable[..., Tensor], float]] = {
    "sparse attention": (_sparse("full"), 1e-4),
    "sparse attention and centroids": (_sparse("full", "centroid"), 1e-4),
    "sparse attention and expansions": (_sparse("full", "expansion"), 1e-4),
    "sparse attention, int8": (_sparse("int8"), 1e-3),
    "sparse attention, int8-fp8": (_sparse("int8-fp8"), 5e-2),
    "dense attention, int8": (_dense("int8"), 1e-3),
    "dense attention, int8-fp8": (_dense("int8-fp8"), 5e-2),
    "k-means": (_kmeans, 1e-3),
}


def _find_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _describe_cpu_kernel() -> str:
    library = load_library()
    if isinstance(library, str):
        return f"plain products, slower than the compiled kernel: {library}"
    return "compiled C++"


def _find_compiler() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not needed: no Triton"
    return (
        os.environ.get("CC")
        or shutil.which("gcc")
        or shutil.which("clang")
        or "none found: install gcc"
    )


def _check_tiny_world() -> str:
    folder = tiny_world_path()
    has_weights = any((folder / "transformer").glob("*.safetensors"))
    return str(folder) if has_weights else f"MISSING: no weights in {folder / 'transformer'}"
