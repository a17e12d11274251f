"""The only room that touches diffusers' processors, hooks and call stack.

`install` gives each self-attention module a processor of a subclass of its own class. The subclass runs the original
``__call__`` (projections, norms, RoPE, LoRA), but ``dispatch_attention_fn`` and PyTorch's
``scaled_dot_product_attention`` lead to `Layer.attend` through one custom op. So compiled blocks see one opaque call
and one class for all layers. A root hook hands every forward to the session, which may run it again. Nothing global is
patched. `Installation.uninstall` puts the original processor objects back.
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
from dit_accel.hooks.layers import DenseCall, ForwardHandler, Layer
from dit_accel.hooks.root_hook import (
    HOOK,
    ForwardCall,
    RerunForward,
    cache_without_contexts,
    config_of,
    foreign_states,
    handler_of,
    has_cache_dit,
)

__all__ = [
    "HOOK",
    "BlockReuse",
    "DenseCall",
    "ForwardCall",
    "ForwardHandler",
    "Installation",
    "Layer",
    "RerunForward",
    "UnsupportedProcessor",
    "cache_without_contexts",
    "check_processors",
    "check_shared",
    "config_of",
    "foreign_states",
    "handler_of",
    "has_cache_dit",
    "install",
    "interleaved",
    "is_patchable",
    "processor_of",
    "splits_text",
]
