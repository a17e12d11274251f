"""The only place that touches diffusers' processors and hooks.

``install`` gives each self-attention module a processor of a subclass of its own processor class.
The subclass runs the very code of the original ``__call__`` (projections, norms, RoPE, LoRA), with
``dispatch_attention_fn`` (or PyTorch's ``scaled_dot_product_attention``) rebound to ours; ours leads to
``Layer.attend`` through one custom op, so that compiled blocks see one opaque call and one class for all
layers. A root hook tells the session where each forward begins and ends, and may run it again.
Nothing is patched globally; ``uninstall`` puts back the very same processor objects.
"""

from dit_accel.errors import UnsupportedProcessor
from dit_accel.hooks.block_reuse import BlockReuse
from dit_accel.hooks.context_parallel import check_shared, interleaved, splits_text
from dit_accel.hooks.install import (
    Installation,
    check_processors,
    install,
    is_patchable,
    processor_of,
)
from dit_accel.hooks.layers import DenseCall, Layer, RerunForward
from dit_accel.hooks.root_hook import (
    HOOK,
    PERTURBED,
    cache_without_contexts,
    config_of,
    foreign_states,
    owner_of,
)

__all__ = [
    "HOOK",
    "PERTURBED",
    "BlockReuse",
    "DenseCall",
    "Installation",
    "Layer",
    "RerunForward",
    "UnsupportedProcessor",
    "cache_without_contexts",
    "check_processors",
    "check_shared",
    "config_of",
    "foreign_states",
    "install",
    "interleaved",
    "is_patchable",
    "owner_of",
    "processor_of",
    "splits_text",
]
