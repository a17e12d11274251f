"""Tiny transformers under diffusers' Ulysses attention: one of several processes, results written to a file.

``torchrun --nproc-per-node DEGREE context_parallel.py DEGREE OUT``
"""

from __future__ import annotations

import inspect
import json
import sys
from typing import Any

import torch
from diffusers import ContextParallelConfig
from safetensors.torch import save_file
from support.tiny_transformers import ROWS
from support.tiny_transformers.base import ready
from torch import Tensor, distributed, nn

import dit_accel
from dit_accel import SVG2, Dense, Neighborhood, Schedule

FAMILIES = ("wan", "flux", "ltx", "qwen-image")
METHODS = (Dense(), SVG2(top_p=0.5, min_key_share=0.1), Neighborhood(density=0.4, tile=(1, 2, 2)))
CASES = {f"{family} {method.name}": (family, method) for family in FAMILIES for method in METHODS}


def with_four_heads(transformer: nn.Module) -> nn.Module:
    """Another of its kind: four processes need four heads."""
    changed = {"num_attention_heads": 4}
    if "cross_attention_dim" in transformer.config:
        changed["cross_attention_dim"] = 4 * transformer.config["attention_head_dim"]
    torch.manual_seed(0)
    taken = inspect.signature(type(transformer).__init__).parameters
    kept = {name: value for name, value in transformer.config.items() if name in taken}
    return ready(type(transformer)(**{**kept, **changed}))


def attended(case: str, shared: ContextParallelConfig | None = None) -> tuple[Tensor, Any]:
    """Output and report of a case."""
    family, method = CASES[case]
    row = next(row for row in ROWS if row.family == family)
    transformer = with_four_heads(row.build())
    if shared is not None:
        transformer.enable_parallelism(config=shared)
    schedule = Schedule(dense_steps=0.0, min_tokens=0)
    with dit_accel.enable_sparse_attention(transformer, method, schedule=schedule) as session:
        inputs = row.inputs()
        if family == "ltx":  # diffusers gives its cross attention a mask of all heads
            inputs["encoder_attention_mask"] = None
        out, report = row.run(transformer, inputs), session.report()
    return out.contiguous(), {"calls": report.calls, "fallbacks": report.fallbacks}


def main(degree: int, out: str) -> None:
    distributed.init_process_group("cpu:gloo")
    torch.accelerator.device_count = lambda: 1  # diffusers counts devices of an accelerator
    outs, reports = {}, {}
    for case in CASES:
        shared = ContextParallelConfig(ulysses_degree=degree, ulysses_anything=True)
        outs[case], reports[case] = attended(case, shared)
    even = ContextParallelConfig(ulysses_degree=degree)
    outs["equal shares"], reports["equal shares"] = attended("wan svg2", even)
    if distributed.get_rank() == 0:
        save_file(outs, out, metadata={"reports": json.dumps(reports)})
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
