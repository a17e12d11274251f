"""Quantize the linear layers of a transformer's blocks with torchao, or store them in 8 bits with diffusers.

Both lose bits of the weights. So the original weights are kept in CPU memory, and the undo is exact.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from dit_accel.core.levers import Linears
from dit_accel.errors import InvalidSettings
from dit_accel.hooks.added_hooks import AddedHooks

BLOCK_LISTS = (
    *("blocks", "transformer_blocks", "single_transformer_blocks"),
    *("temporal_transformer_blocks", "visual_transformer_blocks", "layers"),
)
"""Names under which diffusers' transformers keep their blocks."""

_TORCHAO = {
    "int8-weights": ("Int8WeightOnlyConfig", 0),
    "int8-dynamic": ("Int8DynamicActivationInt8WeightConfig", 0),
    "fp8-weights": ("Float8WeightOnlyConfig", 0),
    "fp8-dynamic": ("Float8DynamicActivationFloat8WeightConfig", 89),
}
"""Configuration of torchao by kind, and the compute capability of CUDA devices that it needs, times ten; 0 for any
device.
"""


def check_linears(transformer: nn.Module, settings: Linears) -> None:
    """Check that the linear layers of a transformer can be changed, and restored.

    Raises:
        InvalidSettings: If torchao is missing, the device cannot run the kind, or the weights are not there.
    """
    check_torchao(settings)
    capability = _TORCHAO.get(settings.kind, ("", 0))[1]
    device = next(transformer.parameters()).device
    if capability and _capability(device) < capability:
        raise InvalidSettings(
            f"linears {settings.kind} needs a CUDA device of compute capability {capability / 10:g}, and the model is "
            f"on {device}: use {settings.kind.partition('-')[0]}-weights or int8-dynamic"
        )
    names = [n for n, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    given = set(settings.skip) - set(Linears.skip)
    unknown = [text for text in sorted(given) if not any(text in name for name in names)]
    if unknown:
        raise InvalidSettings(
            f"no linear layer of {type(transformer).__name__} has {unknown[0]!r} in its name: change skip of linears"
        )
    chosen = chosen_linears(transformer, settings)
    if not chosen:
        raise InvalidSettings(
            f"{type(transformer).__name__} has no linear layer in its blocks to change: leave linears out"
        )
    name, module = next(iter(chosen.items()))
    if module.weight.is_meta or _has_group_offloading(transformer):
        raise InvalidSettings(
            "linears cannot be changed while weights are offloaded layer by layer or in groups, because copies of "
            "them would stay as they are: enable acceleration first, then offload"
        )
    if type(module.weight) is not nn.Parameter or not module.weight.is_floating_point():
        raise InvalidSettings(f"linears are quantized already, such as {name}: leave linears out")


def check_torchao(settings: Linears) -> None:
    """Check that torchao is installed if a kind needs it.

    Raises:
        InvalidSettings: If it is not.
    """
    if settings.kind in _TORCHAO and importlib.util.find_spec("torchao") is None:
        raise InvalidSettings(f"linears {settings.kind} needs torchao: pip install torchao")


def chosen_linears(transformer: nn.Module, settings: Linears) -> dict[str, nn.Linear]:
    """Return the linear layers in the blocks by name, without adapters and those that the settings skip."""
    skipped = ("lora_", *settings.skip)
    return {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
        and name.split(".")[0] in BLOCK_LISTS
        and not any(text in name for text in skipped)
    }


class ChangedLinears:
    """The linear layers of a transformer, in cheaper numbers.

    Args:
        transformer: The transformer, which `check_linears` accepted.
        settings: Kind of the change.
    """

    def __init__(self, transformer: nn.Module, settings: Linears) -> None:
        self._added: AddedHooks | None = None
        self._chosen: list[nn.Module] = list(chosen_linears(transformer, settings).values())
        self._kept: dict[Any, torch.Tensor] = {
            parameter: parameter.data
            for module in self._chosen
            for parameter in module.parameters(recurse=False)
        }
        self._weights: list[tuple[nn.Module, Any]] = [(m, m.weight) for m in self._chosen]
        if settings.kind == "fp8-storage":
            self._cast(transformer)
        else:
            self._quantize(transformer, settings.kind)
        # After the change, so that one copy of the weights stays on the device.
        self._kept = {parameter: data.cpu() for parameter, data in self._kept.items()}
        for _, weight in self._weights:
            if weight.data.device.type != "cpu" and settings.kind != "fp8-storage":
                weight.data = self._kept[weight]

    @property
    def count(self) -> int:
        """Return the number of linear layers that were changed."""
        return len(self._chosen)

    def undo(self) -> None:
        """Put the original weights back, bit for bit, on the device where the layers are now."""
        if self._added is not None:
            self._added.remove(self._added.find(), deinitialize=False)
            self._added = None
        for module, weight in self._weights:
            changed: Any = module.weight
            device = changed.device
            module._parameters["weight"] = weight
            vars(module).pop("extra_repr", None)  # torchao's
            for parameter in module.parameters(recurse=False):
                parameter.data = self._kept[parameter].to(device)
        self._chosen, self._weights, self._kept = [], [], {}

    def _quantize(self, transformer: nn.Module, kind: str) -> None:
        from torchao import quantization

        chosen = set(self._chosen)
        config: Any = getattr(quantization, _TORCHAO[kind][0])()
        quantization.quantize_(transformer, config, filter_fn=lambda module, _: module in chosen)

    def _cast(self, transformer: nn.Module) -> None:
        from diffusers.hooks.layerwise_casting import (
            _disable_peft_input_autocast,
            apply_layerwise_casting_hook,
        )

        self._added = AddedHooks(transformer)
        for module, weight in self._weights:
            apply_layerwise_casting_hook(
                module, torch.float8_e4m3fn, weight.dtype, non_blocking=False
            )
        _disable_peft_input_autocast(transformer)


def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _has_group_offloading(transformer: nn.Module) -> bool:
    registries = (getattr(module, "_diffusers_hook", None) for module in transformer.modules())
    return any("offload" in name for r in registries if r is not None for name in r.hooks)
