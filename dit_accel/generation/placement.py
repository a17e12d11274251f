"""How a model is loaded besides its weights: device, dtype, LoRAs, offload, tiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import ContextParallelConfig
from safetensors import SafetensorError

from dit_accel.errors import InvalidSettings, first_line
from dit_accel.hooks.active_pipeline import transformers_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OFFLOADS = ("none", "model", "group", "sequential")


@dataclass(frozen=True)
class LoadOptions:
    """Where and how a pipeline runs.

    Attributes:
        device, dtype: where and in what.
        loras: of the transformer: folders, .safetensors files or hub ids, each with ``:SCALE`` or without.
        offload: what of the pipeline waits in the memory of the CPU: ``none``, whole models (``model``), single layers
            of which the next is on its way (``group``), or single layers (``sequential``), as diffusers does it.
        vae_tiling: decode in tiles, in less memory.
        ulysses: devices that share each clip, by diffusers' context parallelism.
    """

    device: str = "cpu"
    dtype: str = "float32"
    loras: Sequence[str] = ()
    offload: str = "none"
    vae_tiling: bool = False
    ulysses: int = 1

    def check(self) -> None:
        """Refuse what does not work here.

        Raises:
            InvalidSettings: in one line.
        """
        if self.dtype not in DTYPES:
            raise InvalidSettings(
                f"unknown dtype {self.dtype!r}: choose one of {', '.join(DTYPES)}"
            )
        kind = check_device(self.device)
        if self.offload not in OFFLOADS:
            raise InvalidSettings(
                f"unknown offload {self.offload!r}: choose one of {', '.join(OFFLOADS)}"
            )
        if self.offload != "none" and kind != "cuda":
            raise InvalidSettings(
                f"offload {self.offload!r} needs a CUDA device, got {self.device!r}: choose none"
            )
        if self.ulysses > 1 and torch.accelerator.device_count() == 0:
            raise InvalidSettings(
                "context parallelism needs an accelerator in each process (diffusers counts them), here is none: "
                "leave --context-parallel out"
            )
        if self.ulysses > 1 and torch.cuda.is_available() and self.device != "cuda":
            raise InvalidSettings(
                f"context parallelism gives each process a GPU of its own, got device {self.device!r}: use cuda"
            )
        if self.ulysses > 1 and self.offload != "none":
            raise InvalidSettings("context parallelism and offload do not go together: choose one")
        for text in self.loras:
            lora = Lora.parse(text)
            if lora.is_local and not Path(lora.source).exists():
                raise InvalidSettings(
                    f"no LoRA {lora.source}: give a folder, a .safetensors file or a hub id"
                )

    def apply(self, pipe: Any) -> Any:
        """Do it to a pipeline whose weights are in memory.

        Raises:
            InvalidSettings: for a LoRA that does not fit, a VAE that cannot decode in tiles, or a transformer whose
                tokens diffusers cannot share.
        """
        use_device(self.device)
        loras = [Lora.parse(text) for text in self.loras]
        names = [f"lora{number}" for number in range(len(loras))]
        for lora, name in zip(loras, names, strict=True):
            lora.load(pipe, name)
        if loras:
            pipe.set_adapters(names, [lora.scale for lora in loras])
        if self.vae_tiling:
            vae: Any = getattr(pipe, "vae", None)
            if not hasattr(vae, "enable_tiling"):
                raise InvalidSettings(
                    f"{type(vae).__name__} cannot decode in tiles: leave --vae-tiling out"
                )
            vae.enable_tiling()
        if self.offload == "none":
            pipe.to(self.device)
            self._share(pipe)
            return pipe
        if self.offload == "model":
            pipe.enable_model_cpu_offload(device=self.device)
        elif self.offload == "sequential":
            pipe.enable_sequential_cpu_offload(device=self.device)
        else:
            pipe.enable_group_offload(
                onload_device=torch.device(self.device), offload_type="leaf_level", use_stream=True
            )
        return pipe

    def _share(self, pipe: Any) -> None:
        """Split the tokens of every transformer among the processes."""
        if self.ulysses == 1:
            return
        config = ContextParallelConfig(ulysses_degree=self.ulysses, ulysses_anything=True)
        for transformer in transformers_of(pipe).values():
            model: Any = transformer
            try:
                model.enable_parallelism(config=config)
            except ValueError as error:
                raise InvalidSettings(
                    f"{type(transformer).__name__}: {first_line(error)}"
                ) from None


class Lora(NamedTuple):
    """A low-rank adapter and its scale."""

    source: str
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Lora:
        """``SOURCE`` or ``SOURCE:SCALE``.

        Raises:
            InvalidSettings: for a scale that is no number.
        """
        source, colon, scale = text.rpartition(":")
        if not colon or "/" in scale or "\\" in scale:  # a path on another drive has a colon, too
            return cls(text)
        try:
            return cls(source, float(scale))
        except ValueError:
            raise InvalidSettings(f"LoRA {text!r}: the scale {scale!r} is no number") from None

    @property
    def is_local(self) -> bool:
        return self.source.endswith(".safetensors") or self.source.count("/") != 1

    def load(self, pipe: Any, name: str) -> None:
        """Load it under a name, from safetensors only.

        Raises:
            InvalidSettings: if the pipeline takes none, or this one does not load.
        """
        if not hasattr(pipe, "load_lora_weights"):
            raise InvalidSettings(f"{type(pipe).__name__} takes no LoRA")
        path = Path(self.source)
        where = {"weight_name": path.name} if path.is_file() else {}
        folder = str(path.parent) if path.is_file() else self.source
        try:
            pipe.load_lora_weights(folder, adapter_name=name, use_safetensors=True, **where)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise InvalidSettings(
                f"LoRA {self.source} does not load: {first_line(error)}"
            ) from error


def use_device(device: str) -> None:
    """Make a numbered CUDA device the current one, by which clocks and new memory go."""
    place = torch.device(device)
    if place.type == "cuda" and place.index is not None:
        torch.cuda.set_device(place)


def check_device(device: str) -> str:
    """The kind of a device that is there.

    Raises:
        InvalidSettings: if it is not.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise InvalidSettings(f"unknown device {device!r}: use cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidSettings(
            f"device {device!r} is not available: this machine has no CUDA device; use cpu"
        )
    index, count = torch.device(device).index or 0, torch.cuda.device_count()
    if kind == "cuda" and index >= count:
        raise InvalidSettings(
            f"device {device!r} is not available: choose cuda:0 to cuda:{count - 1}"
        )
    return kind
