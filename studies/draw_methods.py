"""Draw what each method keeps of one attention of the bundled model: docs/images/NAME.png.

The upper row shows the frames of the clip. It marks the tokens that one query of the middle frame attends to. The lower
picture is the mask of one head, reduced to blocks.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.nn.functional import avg_pool2d

from dit_accel import (
    SVG,
    SVG2,
    AttentionCall,
    Band,
    Method,
    Neighborhood,
    PermutedBlocks,
    Radial,
    RasterWindow,
    SpargeAttn,
    SVGEar,
    TopKBlocks,
    XAttention,
)
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel_eval.bench.capture import read_capture

ROOT = Path(__file__).parent.parent
CAPTURE = ROOT / "assets/dit_accel_assets/captures/tiny_world.safetensors"
HEAD = 1
# Tokens of a side of a block of the lower picture.
BLOCK = 8
COLOUR = "Blues"
EXAMPLES: dict[str, Method] = {
    "svg-ear": SVGEar(),
    "svg2": SVG2(top_p=0.35, min_key_share=0.13),
    "svg": SVG(),
    "xattention": XAttention(threshold=0.5, block=64),
    "sparge-attn": SpargeAttn(top_k=0.3, query_block=32, key_block=16),
    "permuted-blocks": PermutedBlocks(top_p=0.5, block=64),
    "topk-blocks": TopKBlocks(density=0.3, block=16),
    "neighborhood": Neighborhood(),
    "radial": Radial(decay=0.2, block=32),
    "band": Band(),
    "raster-window": RasterWindow(window=0.3),
}


def mask_of(method: Method, call: AttentionCall) -> torch.Tensor:
    """Return which keys each query of the head attends to exactly, bool ``[S, S]``."""
    plan = method.plan(call, method.new_state(), Ops(Timer()))
    assert plan is not None
    return plan.block_map.to_mask()[0, HEAD]


def draw(method: Method, call: AttentionCall) -> Figure:
    """Draw the keys of one query in the frames of the clip, and the mask of the head."""
    layout = call.layout
    mask = mask_of(method, call).float()
    frame, row, column = layout.frames // 2, layout.height // 2, layout.width // 3
    query = (frame * layout.height + row) * layout.width + column
    frames = mask[query].view(layout.frames, layout.height, layout.width)
    figure = Figure(figsize=(layout.frames, 5.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 3.6))
    for index, axes in enumerate(upper.subplots(1, layout.frames)):
        axes.imshow(frames[index], cmap=COLOUR, vmin=0, vmax=1.4)
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(f"frame {index}", fontsize=8)
        if index == frame:
            axes.plot(column, row, "rx", markersize=5)
    axes = lower.subplots()
    axes.imshow(avg_pool2d(mask[None], BLOCK)[0], cmap=COLOUR, vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[], xlabel="keys, in the order of the clip", ylabel="queries")
    axes.set_title(f"{method.name}: {mask.mean():.2f} of the pairs of head {HEAD}", fontsize=10)
    return figure


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=ROOT / "docs/images", help="Folder."
)
def main(out: Path) -> None:
    """Draw every method that keeps a part of the pairs."""
    call = next(iter(read_capture(CAPTURE)))
    out.mkdir(parents=True, exist_ok=True)
    for name, method in EXAMPLES.items():
        path = out / f"{name}.png"
        draw(method, call).savefig(path, dpi=80)
        Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    main()
