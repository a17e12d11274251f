"""What this machine has, and what dit_accel would use on it. Every claim about an op is checked
against its reference.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from dit_accel.config import crossover_tokens
from dit_accel_assets import tiny_world_path
from dit_accel_kernels import (
    BlockMap,
    group_by_label,
    sparse_attention,
    sparse_attention_reference,
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
        "checks": {"sparse attention on cpu": check_sparse_attention("cpu")},
        "will be used": {
            "sparse attention": "eager grouped matrix products (no Triton kernels in this version)",
            "crossover on cpu": f"{crossover_tokens('cpu')} tokens; shorter calls run dense",
            "dense attention": "the pipeline's own backend, unchanged",
        },
    }


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


def check_sparse_attention(device: str) -> str:
    """Compare the op with its reference on a small random case; says the largest difference."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, 2, 97, 32, generator=generator).to(device) for _ in range(3)
    )
    labels = [torch.randint(0, 5, (1, 2, 97), generator=generator).to(device) for _ in range(2)]
    selected = torch.rand(1, 2, 5, 5, generator=generator).to(device) > 0.5
    block_map = BlockMap(selected, *group_by_label(labels[0], 5), *group_by_label(labels[1], 5))
    out, _ = sparse_attention(query, key, value, block_map)
    reference, _ = sparse_attention_reference(query, key, value, block_map)
    error = float((out - reference).abs().max())
    return f"{'usable' if error < 1e-4 else 'WRONG'}, largest difference from the reference {error:.1e}"


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
