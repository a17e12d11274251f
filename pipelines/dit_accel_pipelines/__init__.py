"""What each diffusers pipeline looks like: data and small functions, one declaration per model
family.
"""

from dit_accel_pipelines import wan
from dit_accel_pipelines.family import (
    AttentionShape,
    Family,
    SizeRule,
    TokenLayout,
    UnknownFamily,
    families,
    find_family,
    register_family,
)

register_family(wan.WAN)

__all__ = [
    "AttentionShape",
    "Family",
    "SizeRule",
    "TokenLayout",
    "UnknownFamily",
    "families",
    "find_family",
    "register_family",
]
