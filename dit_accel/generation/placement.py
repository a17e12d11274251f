"""Place a pipeline: device, dtype, LoRAs, offload, tiled decoding and context parallelism."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dit_accel.errors import InvalidSettings, first_line
from dit_accel.io.reading import check_regular_file

DTYPES = ("float32", "bfloat16", "float16")
OFFLOADS = ("none", "model", "group", "sequential")

_DEVICE = re.compile(r"(cpu|cuda)(?::(\d+))?")


@dataclass(frozen=True)
class LoadOptions:
    """The device, dtype and other options that a pipeline is loaded with.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: dtype of the weights, one of `DTYPES`.
        loras: LoRAs of the transformer: folders, .safetensors files or hub ids, each with an optional ``:SCALE``.
        offload: which weights stay in CPU memory until they are used: ``none``, whole components (``model``), single
            layers with the next one prefetched (``group``), or single layers (``sequential``).
        vae_tiling: decode in tiles, which takes less memory.
        ulysses: number of devices that split each clip by diffusers' context parallelism.
    """

    device: str = "cpu"
    dtype: str = "float32"
    loras: Sequence[str] = ()
    offload: str = "none"
    vae_tiling: bool = False
    ulysses: int = 1

    def check(self) -> None:
        """Check the options against this machine, without loading anything.

        Raises:
            InvalidSettings: for an unknown name, a missing device or file, or options that exclude each other.
        """
        if self.dtype not in DTYPES:
            raise InvalidSettings(
                f"unknown dtype {self.dtype!r}: choose one of {', '.join(DTYPES)}"
            )
        if self.offload not in OFFLOADS:
            raise InvalidSettings(
                f"unknown offload {self.offload!r}: choose one of {', '.join(OFFLOADS)}"
            )
        if check_device(self.device) != "cuda" and self.offload != "none":
            raise InvalidSettings(
                f"offload {self.offload!r} needs a CUDA device, got {self.device!r}: choose none"
            )
        for text in self.loras:
            Lora.parse(text).check()
        if self.ulysses > 1:
            self._check_context_parallelism()

    def _check_context_parallelism(self) -> None:
        if self.offload != "none":
            raise InvalidSettings("context parallelism excludes offload: choose one of them")
        if torch.accelerator.device_count() == 0:
            raise InvalidSettings(
                "context parallelism needs an accelerator in each process (diffusers counts them), and this machine "
                "has none: leave --context-parallel out"
            )
        if torch.cuda.is_available() and self.device != "cuda":
            raise InvalidSettings(
                f"context parallelism gives each process a GPU of its own, got device {self.device!r}: use cuda"
            )

    def apply(self, pipe: Any) -> Any:
        """Place a pipeline whose weights are in memory, and return it.

        Raises:
            InvalidSettings: for a LoRA that does not fit, a VAE that cannot decode in tiles, or a transformer that
                diffusers cannot run in parallel.
        """
        use_device(self.device)
        self._load_loras(pipe)
        if self.vae_tiling:
            vae: Any = getattr(pipe, "vae", None)
            if not hasattr(vae, "enable_tiling"):
                raise InvalidSettings(
                    f"{type(vae).__name__} cannot decode in tiles: leave --vae-tiling out"
                )
            vae.enable_tiling()
        self._move(pipe)
        return pipe

    def _load_loras(self, pipe: Any) -> None:
        loras = [Lora.parse(text) for text in self.loras]
        names = [f"lora{number}" for number in range(len(loras))]
        for lora, name in zip(loras, names, strict=True):
            lora.load(pipe, name)
        if loras:
            pipe.set_adapters(names, [lora.scale for lora in loras])

    def _move(self, pipe: Any) -> None:
        """Move the weights to the device, or leave them in CPU memory under an offload."""
        if self.offload == "none":
            pipe.to(self.device)
            self._parallelize(pipe)
        elif self.offload == "model":
            pipe.enable_model_cpu_offload(device=self.device)
        elif self.offload == "sequential":
            pipe.enable_sequential_cpu_offload(device=self.device)
        else:
            pipe.enable_group_offload(
                onload_device=torch.device(self.device), offload_type="leaf_level", use_stream=True
            )

    def _parallelize(self, pipe: Any) -> None:
        """Split the tokens of every transformer among the processes."""
        if self.ulysses == 1:
            return
        from diffusers import ContextParallelConfig

        from dit_accel.hooks.active_pipeline import transformers_of

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
        """Return the adapter that ``SOURCE`` or ``SOURCE:SCALE`` names.

        Raises:
            InvalidSettings: for a scale that is not a finite number.
        """
        if Path(text).is_file():  # a file name may contain a colon
            return cls(text)
        source, colon, scale = text.rpartition(":")
        # A colon before a slash belongs to a path or to a drive letter.
        if not colon or "/" in scale or "\\" in scale:
            return cls(text)
        try:
            number = float(scale)
        except ValueError:
            raise InvalidSettings(f"LoRA {text!r}: the scale {scale!r} is not a number") from None
        if not math.isfinite(number):
            raise InvalidSettings(f"LoRA {text!r}: the scale must be finite, got {scale}")
        return cls(source, number)

    @property
    def is_local(self) -> bool:
        """Return True if the source is a file or folder, not a hub id."""
        return self.source.endswith(".safetensors") or self.source.count("/") != 1

    def check(self) -> None:
        """Check that the source exists, if it is local, and that it is no pickle.

        Raises:
            InvalidSettings: with what is accepted.
        """
        path = Path(self.source)
        if self.is_local and not path.exists():
            raise InvalidSettings(
                f"no LoRA {self.source}: give a folder, a .safetensors file or a hub id"
            )
        if path.exists() and not path.is_dir():
            check_regular_file(path, "LoRA")
        if path.is_file() and path.suffix != ".safetensors":
            raise InvalidSettings(
                f"LoRA {self.source} is not a .safetensors file: pickled weights are never loaded"
            )

    def load(self, pipe: Any, name: str) -> None:
        """Load the adapter into a pipeline under a name, from safetensors only.

        Raises:
            InvalidSettings: if the pipeline takes no LoRA, or this one does not load.
        """
        from safetensors import SafetensorError

        self.check()
        if not hasattr(pipe, "load_lora_weights"):
            raise InvalidSettings(f"{type(pipe).__name__} takes no LoRA: leave --lora out")
        path = Path(self.source)
        file_options = {"weight_name": path.name} if path.is_file() else {}
        folder = str(path.parent) if path.is_file() else self.source
        try:
            pipe.load_lora_weights(folder, adapter_name=name, use_safetensors=True, **file_options)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise InvalidSettings(
                f"LoRA {self.source} does not load: {first_line(error)}"
            ) from error


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a name in `DTYPES`."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def use_device(device: str) -> None:
    """Make a numbered CUDA device the current one, because timers and new memory follow it."""
    match = _DEVICE.fullmatch(device)
    if match and match[1] == "cuda" and match[2]:
        torch.cuda.set_device(int(match[2]))


def check_device(device: str) -> str:
    """Return the type, ``cpu`` or ``cuda``, of a device of this machine.

    Raises:
        InvalidSettings: for an unknown or missing device.
    """
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise InvalidSettings(f"unknown device {device!r}: use cpu, cuda or cuda:N")
    kind, index = match[1], int(match[2] or 0)
    if kind == "cpu" and index:
        raise InvalidSettings(f"unknown device {device!r}: there is one CPU, so use cpu")
    if kind == "cpu":
        return kind
    if not torch.cuda.is_available():
        raise InvalidSettings(
            f"device {device!r} is not available: this machine has no CUDA device; use cpu"
        )
    count = torch.cuda.device_count()
    if index >= count:
        raise InvalidSettings(
            f"device {device!r} is not available: choose cuda:0 to cuda:{count - 1}"
        )
    return kind
