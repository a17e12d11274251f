"""The sparse attention methods by name. To add one, add a file to this folder and a line to _ALL."""

from dit_accel.errors import InvalidSettings
from dit_accel.methods.band import Band
from dit_accel.methods.base import Attended, Method
from dit_accel.methods.dense import Dense
from dit_accel.methods.neighborhood import Neighborhood
from dit_accel.methods.permuted_blocks import PermutedBlocks
from dit_accel.methods.radial import Radial
from dit_accel.methods.raster_window import RasterWindow
from dit_accel.methods.re_ttention import ReTtention
from dit_accel.methods.sparge_attn import SpargeAttn
from dit_accel.methods.svg import SVG
from dit_accel.methods.svg2 import SVG2
from dit_accel.methods.svg_ear import SVGEar
from dit_accel.methods.topk_blocks import TopKBlocks
from dit_accel.methods.xattention import XAttention

_ALL: tuple[type[Method], ...] = (
    Dense,
    SVG2,
    SVGEar,
    ReTtention,
    SVG,
    SpargeAttn,
    XAttention,
    PermutedBlocks,
    TopKBlocks,
    Neighborhood,
    Radial,
    Band,
    RasterWindow,
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _ALL}


def find_method(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        InvalidSettings: If the name is unknown.
    """
    if name not in METHODS:
        raise InvalidSettings(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]


__all__ = [
    "METHODS",
    "SVG",
    "SVG2",
    "Attended",
    "Band",
    "Dense",
    "Method",
    "Neighborhood",
    "PermutedBlocks",
    "Radial",
    "RasterWindow",
    "ReTtention",
    "SVGEar",
    "SpargeAttn",
    "TopKBlocks",
    "XAttention",
    "find_method",
]
