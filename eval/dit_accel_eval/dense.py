"""The fastest dense attention of a machine, which every speed-up is a ratio to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from diffusers import DiffusionPipeline, attention_backend

from dit_accel import Profile
from dit_accel.errors import InvalidSettings
from dit_accel.generation.render import Clip, render, render_with
from dit_accel.generation.settings import RenderSettings
from dit_accel.io.jsonl import write_json
from dit_accel.io.parsing import parse_dataclass
from dit_accel.io.reading import read_json
from dit_accel_eval.noise_floor import OtherBackend
from dit_accel_eval.settings import ALL_SPARSE

NATIVE = "native"
PLAIN = "plain products"
CUDNN = "_native_cudnn"
BACKENDS = (NATIVE, PLAIN, CUDNN)
TRIAL_STEPS = 4


@dataclass(frozen=True)
class DenseBackend:
    """A way to compute dense attention.

    Attributes:
        name: A backend of diffusers, or ``"plain products"``: matrix products row by row in cache.
        seconds: Denoising seconds of a short clip by backend, the fastest first.
    """

    name: str = NATIVE
    seconds: dict[str, float] = field(default_factory=dict)

    def render(self, pipe: DiffusionPipeline, settings: RenderSettings) -> Clip:
        """Render a clip with every call dense."""
        dense = settings.as_dense()
        if self.name == PLAIN:
            return render_with(pipe, dense, Profile(OtherBackend(), ALL_SPARSE))
        with attention_backend(self.name):
            return render(pipe, dense)

    def __str__(self) -> str:
        timings = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
        return f"{self.name} (short clip: {timings})"

    @classmethod
    def load(cls, path: Path) -> DenseBackend:
        """Read what `save` wrote.

        Raises:
            InvalidSettings: if the file is missing or damaged.
        """
        values = read_json(path, "timing of dense attention")
        if not isinstance(values, Mapping) or values.get("name") not in BACKENDS:
            raise InvalidSettings(f"{path} holds no timing of dense attention: remove it")
        backend: DenseBackend = parse_dataclass(cls, values, f"{path}:")
        return backend

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        write_json(path, asdict(self))


def fastest_dense(pipe: DiffusionPipeline, settings: RenderSettings) -> DenseBackend:
    """Return the fastest dense attention for a request, by the time of a short clip.

    It tries SDPA, and besides that plain products on a CPU and cuDNN's attention on a GPU, each warmed up once.
    """
    short = replace(settings, steps=min(settings.steps or TRIAL_STEPS, TRIAL_STEPS))
    seconds = {}
    for name in (NATIVE, PLAIN if settings.device == "cpu" else CUDNN):
        backend = DenseBackend(name)
        try:
            backend.render(pipe, replace(short, steps=1))
            seconds[name] = backend.render(pipe, short).seconds["denoise"]
        except RuntimeError:
            # cuDNN has no kernel for some masks and sizes.
            if name == NATIVE:
                raise
    ordered = dict(sorted(seconds.items(), key=lambda item: item[1]))
    return DenseBackend(next(iter(ordered)), ordered)
