"""Time four ways to attend to selected keys on a CPU: C++, Numba, SDPA with a mask, and plain products."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch

from dit_accel import SVGEar
from dit_accel.core.ops import Ops, heads_first
from dit_accel.core.timer import Timer
from dit_accel.io.jsonl import write_json
from dit_accel_eval.bench.baselines import full_precision_baselines
from dit_accel_eval.bench.cases import SHAPES, make_inputs
from dit_accel_eval.bench.layer import make_attention_call
from dit_accel_eval.bench.run import machine
from dit_accel_kernels import BlockMap, sparse_attention
from dit_accel_kernels.contracts import label_positions
from dit_accel_kernels.cpu.sparse_attention import attend_by_products

if TYPE_CHECKING:
    from torch import Tensor

DENSITY = 0.1


def attend_by_sdpa(query: Tensor, key: Tensor, value: Tensor, block_map: BlockMap) -> Tensor:
    """Attend to the selected keys of each group by PyTorch's fused attention with an additive mask."""
    out = torch.zeros_like(query)
    labels = label_positions(block_map.key_offsets, key.shape[2])
    for head in range(query.shape[1]):
        order, key_order = block_map.query_order[0, head], block_map.key_order[0, head]
        rows = order.split(block_map.query_offsets[0, head].diff().tolist())
        for group, selected in zip(rows, block_map.selected[0, head], strict=True):
            keys = key_order[selected[labels[0, head]]]
            if not len(group) or not len(keys):
                continue
            k, v = (x[:1, head].index_select(1, keys)[None] for x in (key, value))
            # Stand-ins need a bias for each key, so a mask is part of this way.
            mask = query.new_zeros(1, 1, 1, len(keys))
            q = query[:1, head].index_select(1, group)[None]
            attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            out[0, head].index_copy_(0, group, attended[0, 0])
    return out


def compile_numba() -> Callable[[Tensor, Tensor, Tensor, BlockMap], Tensor]:
    """Return the same loop over groups in Numba, with its products from NumPy."""
    import numba
    import numpy as np

    @numba.njit(fastmath=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
    def attend_head(
        query, key, value, selected, q_order, q_offsets, k_order, k_offsets, scale, out
    ):  # type: ignore[no-untyped-def]
        head_dim = query.shape[1]
        for i in range(len(q_offsets) - 1):
            size = 0
            for j in range(len(k_offsets) - 1):
                if selected[i, j]:
                    size += k_offsets[j + 1] - k_offsets[j]
            if size == 0:
                continue
            keys = np.empty((size, head_dim), np.float32)
            values = np.empty((size, head_dim), np.float32)
            n = 0
            for j in range(len(k_offsets) - 1):
                if selected[i, j]:
                    for p in range(k_offsets[j], k_offsets[j + 1]):
                        keys[n], values[n] = key[k_order[p]], value[k_order[p]]
                        n += 1
            sums = np.empty(head_dim, np.float32)
            scores = np.empty(size, np.float32)
            for p in range(q_offsets[i], q_offsets[i + 1]):
                row = q_order[p]
                top = np.float32(-np.inf)
                for n in range(size):
                    score = np.float32(0)
                    for d in range(head_dim):
                        score += query[row, d] * keys[n, d]
                    scores[n] = score * scale
                    top = max(top, scores[n])
                total = np.float32(0)
                sums[:] = 0
                for n in range(size):
                    weight = np.exp(scores[n] - top)
                    total += weight
                    for d in range(head_dim):
                        sums[d] += weight * values[n, d]
                out[row] = sums / total

    def attend(query: Tensor, key: Tensor, value: Tensor, block_map: BlockMap) -> Tensor:
        out = torch.zeros_like(query, dtype=torch.float32)
        scale = np.float32(query.shape[-1] ** -0.5)
        for head in range(query.shape[1]):
            tensors = [x[0, head].float().contiguous().numpy() for x in (query, key, value)]
            names = ("selected", "query_order", "query_offsets", "key_order", "key_offsets")
            groups = [getattr(block_map, name)[0, head].contiguous().numpy() for name in names]
            result = np.zeros(tensors[0].shape, np.float32)
            attend_head(*tensors, *groups, scale, result)
            out[0, head] = torch.from_numpy(result)
        return out

    return attend


def median_cpu_seconds(call: Callable[[], object], rounds: int) -> float:
    """Return the median CPU seconds of a call."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def measure(shape: str, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Return the median CPU milliseconds of each way, in turns, its difference from C++, and those of svg-ear."""
    call = make_attention_call(SHAPES[shape], make_inputs(SHAPES[shape], dtype, "cpu"))
    method = SVGEar(density=DENSITY)
    ops, state = Ops(Timer()), method.new_state()
    plan = method.new_plan(call, state, ops)
    block_map = plan.block_map
    tensors = heads_first(call)
    ways: dict[str, Callable[[], Tensor]] = {
        name: partial(attend, *tensors) for name, attend in full_precision_baselines("cpu").items()
    }
    ways["C++"] = lambda: sparse_attention(*tensors, block_map, return_lse=False)[0]
    ways["plain products, group by group"] = lambda: attend_by_products(
        *tensors, block_map, call.scale, "full", None
    )[0]
    ways["SDPA with a mask, group by group"] = partial(attend_by_sdpa, *tensors, block_map)
    if importlib.util.find_spec("numba"):
        ways["Numba"] = partial(compile_numba(), *tensors, block_map)
    expected = ways["C++"]().float()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    rows = {}
    for name, way in ways.items():
        error = float((way().float() - expected).norm() / expected.norm())
        rows[name] = {} if name in full_precision_baselines("cpu") else {"difference": error}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            way()
            seconds[name].append(time.process_time() - start)
    layer: dict[str, Callable[[], object]] = {
        "attention": lambda: ops.run(plan, call),
        "planning": lambda: method.new_plan(call, state, ops),
    }
    parts = {name: 1e3 * median_cpu_seconds(part, rounds) for name, part in layer.items()}
    density = float(block_map.density())
    for name, row in rows.items():
        row["milliseconds"] = 1e3 * statistics.median(seconds[name])
        share = density if "difference" in row else 1.0
        flops = 4 * share * SHAPES[shape].pairs() * SHAPES[shape].head_dim
        row["gflops"] = flops / row["milliseconds"] / 1e6
    return {
        "shape": shape,
        "dtype": str(dtype)[6:],
        "density": density,
        "ways": rows,
        "svg-ear": parts,
    }


@click.command()
@click.option("--shapes", default="cpu-3328,cpu-8192", show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file.")
def main(shapes: str, rounds: int, out: Path) -> None:
    """Time each way on one thread, in CPU seconds, because other programs may use the machine."""
    torch.set_num_threads(1)
    results = [
        measure(shape, dtype, rounds)
        for shape in shapes.split(",")
        for dtype in (torch.float32, torch.bfloat16)
    ]
    write_json(out, {"machine": machine("cpu"), "rounds": rounds, "results": results})


if __name__ == "__main__":
    main()
