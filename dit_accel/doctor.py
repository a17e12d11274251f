"""What this machine has, and what dit_accel would use on it. Every claim about an op is checked
against its reference.
"""

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
from dit_accel.errors import InvalidSettings
from dit_accel.methods import SVG2
from dit_accel.runtime.cost_model import Rates, Work, find_rates, measured_rates_path
from dit_accel_assets import tiny_world_path
from dit_accel_kernels import (
    BlockMap,
    Precision,
    centroid_attention,
    group_by_label,
    kmeans,
    merge_attention,
    quantized_attention,
    sparse_attention,
    sparse_attention_reference,
    strided_centroids,
)

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
    """Findings by section: versions, devices, tools, checks, and what will be used."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "devices": devices(),
        "tools": {
            "C compiler (Triton's launcher)": _compiler(),
            "C++ compiler (torch.compile on CPU)": shutil.which("g++")
            or shutil.which("clang++")
            or "none found",
        },
        "bundled model": {"tiny-world": _tiny_world()},
        "checks": {
            line: verdict
            for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else []))
            for line, verdict in check_ops(device).items()
        },
        "rates": rates(),
        "will be used": {
            "sparse attention": "Triton kernels"
            if torch.cuda.is_available()
            else "grouped matrix products; quantized precisions are simulated",
            "crossover on cpu": f"{crossover_tokens('cpu')} tokens; shorter calls run dense",
            "dense attention": "the pipeline's own backend, unchanged",
        },
    }


def rates() -> dict[str, str]:
    """What the cost model predicts from, and for some sizes."""
    found = {}
    for device in ("cpu", "cuda"):
        for dtype in ("float32", "bfloat16"):
            try:
                known = find_rates(device, dtype)
            except InvalidSettings as error:
                found[f"{device} {dtype}"] = str(error)
                continue
            if known is None:
                found[f"{device} {dtype}"] = "not measured: run `dit-accel bench rates`"
                continue
            where = (
                "this machine"
                if measured_rates_path(device, dtype).is_file()
                else "those that come along"
            )
            sizes = ", ".join(f"{n}: {_speedup(known, n):.2f}" for n in (1024, 4096, 16384))
            found[f"{device} {dtype}"] = (
                f"{where}{known.caveat}; dense by {known.backend}; svg2 at density 0.15, speed-up by tokens: {sizes}"
            )
    return found


def _speedup(known: Rates, tokens: int) -> float:
    return known.speedup("svg2", Work(4, tokens, 64, 0.15, *SVG2().clusters(tokens)))


def devices() -> dict[str, str]:
    """CPU and CUDA devices."""
    found = {
        "cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    }
    if not torch.cuda.is_available():
        return found | {"cuda": "none"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = (
            f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"
        )
    return found


def check_ops(device: str) -> dict[str, str]:
    """Every op on the device against its float32 reference on the CPU, on a small random case."""
    return {
        f"{name} on {device}": _checked(op, tolerance, device)
        for name, (op, tolerance) in OPS.items()
    }


def _checked(op: Callable[..., Tensor], tolerance: float, device: str) -> str:
    with torch.device("cpu"):
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.randn(1, 2, 197, 64, generator=generator) for _ in range(3)]
        labels = [torch.randint(0, 5, (1, 2, 197), generator=generator) for _ in range(2)]
        selected = torch.rand(1, 2, 5, 5, generator=generator) > 0.5
    try:
        found = op(*(x.to(device) for x in (*tensors, *labels, selected)), False)
    except Exception as failure:  # whatever is wrong with the device is the finding
        return f"not usable: {type(failure).__name__}: {failure}".splitlines()[0]
    error = float((found.cpu() - op(*tensors, *labels, selected, True)).abs().max())
    verdict = "usable" if error <= tolerance else "WRONG"
    return f"{verdict}, largest difference from the reference {error:.1e}"


def _map(query_labels: Tensor, key_labels: Tensor, selected: Tensor) -> BlockMap:
    return BlockMap(selected, *group_by_label(query_labels, 5), *group_by_label(key_labels, 5))


def _sparse(precision: Precision) -> Callable[..., Tensor]:
    def op(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, s: Tensor, exact: bool) -> Tensor:
        attend = sparse_attention_reference if exact else sparse_attention
        return attend(q, k, v, _map(a, b, s), precision=precision)[0]

    return op


def _dense(precision: Precision) -> Callable[..., Tensor]:
    def op(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
        return quantized_attention(q, k, v, precision=precision)[0]

    return op


def _kmeans(q: Tensor, k: Tensor, *_: Any) -> Tensor:
    return kmeans(k, strided_centroids(q, 5), 2)[1]


def _centroids(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, s: Tensor, exact: bool
) -> Tensor:
    """Centroids of skipped groups, merged with the exact part."""
    block_map = _map(a, b, s)
    skipped = centroid_attention(q, k[:, :, :5], v[:, :, :5], block_map)
    out, lse = sparse_attention(q, k, v, block_map)
    assert lse is not None
    return merge_attention(out, lse, *skipped)[0]


OPS: dict[str, tuple[Callable[..., Tensor], float]] = {
    "sparse attention": (_sparse("full"), 1e-4),
    "sparse attention, int8": (_sparse("int8"), 1e-3),
    "sparse attention, int8-fp8": (_sparse("int8-fp8"), 5e-2),
    "dense attention, int8": (_dense("int8"), 1e-3),
    "dense attention, int8-fp8": (_dense("int8-fp8"), 5e-2),
    "k-means": (_kmeans, 1e-3),
    "centroid and merge attention": (_centroids, 1e-4),
}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _compiler() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not needed: no Triton"
    return (
        os.environ.get("CC")
        or shutil.which("gcc")
        or shutil.which("clang")
        or "none found: install gcc"
    )


def _tiny_world() -> str:
    folder = tiny_world_path()
    whole = any((folder / "transformer").glob("*.safetensors"))
    return str(folder) if whole else f"MISSING: no weights in {folder / 'transformer'}"
