"""What each diffusers pipeline looks like: data and small functions, one declaration per model
family.
"""

from dit_accel_pipelines import cogvideox, flux, hunyuan_video, ltx, mochi, pixart, sd3, wan
from dit_accel_pipelines.family import (
    AttentionShape,
    Family,
    Part,
    SizeRule,
    TokenLayout,
    UnknownFamily,
    families,
    find_family,
    register_family,
)

register_family(wan.WAN)
register_family(hunyuan_video.HUNYUAN_VIDEO)
register_family(cogvideox.COGVIDEOX)
register_family(ltx.LTX)
register_family(mochi.MOCHI)
register_family(flux.FLUX)
register_family(sd3.SD3)
register_family(pixart.PIXART)

__all__ = [
    "AttentionShape",
    "Family",
    "Part",
    "SizeRule",
    "TokenLayout",
    "UnknownFamily",
    "families",
    "find_family",
    "register_family",
]
