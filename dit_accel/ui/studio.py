"""Render what a page asks for: read its form, render dense and accelerated, and return the files and the figures."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_accel.core.progress import Progress
from dit_accel.errors import InvalidSettings
from dit_accel.extensions import load_extension
from dit_accel.generation.batch import BatchOptions, Rendered, plan_jobs, render_job
from dit_accel.generation.loading import TINY_WORLD, load_pipeline
from dit_accel.generation.settings import (
    RenderSettings,
    attention_settings,
    build_profile,
    resolve_profile,
)
from dit_accel.generation.tiny_world import warn_unreadable
from dit_accel.generation.validation import validate_with_card
from dit_accel.methods import METHODS, Dense
from dit_accel.runtime.presets import PRESETS
from dit_accel.runtime.recipes import list_recipes

PROMPTS = {TINY_WORLD: "a red circle moving left on a black background"}
PROMPT = "a red fox in the snow"
# Knobs of the schedule that the form shows beside those of the method.
SCHEDULE_KNOBS = ("schedule.dense_steps", "schedule.min_tokens")


@dataclass(frozen=True)
class Outcome:
    """Files and figures of a comparison.

    Attributes:
        clip: the accelerated clip, which holds its settings.
        both: dense beside accelerated, in one file.
        figures: seconds, density and quality as a table.
        report: the attention report as HTML.
        notes: warnings.
    """

    clip: Path
    both: Path
    figures: str
    report: str
    notes: list[str]


class Studio:
    """One model that renders comparisons, one at a time.

    Args:
        base: model, placement, and the first values of the form.
        folder: where files are written.

    Attributes:
        base: validated settings, with a prompt to begin with.
        folder: where files are written.

    Raises:
        InvalidSettings: for a model or settings that do not work; no weights are loaded before `load`.
    """

    def __init__(self, base: RenderSettings, folder: Path) -> None:
        prompt = PROMPTS.get(base.model, PROMPT)
        self.base, self._card = validate_with_card(dataclasses.replace(base, prompt=prompt))
        self.folder = folder
        self._pipe: Any = None
        self._lock = threading.Lock()

    @property
    def is_video(self) -> bool:
        """Return True if the model makes videos."""
        return self._card.output == "video"

    def load(self) -> None:
        """Load the weights."""
        self._pipe = load_pipeline(self._card, self.base.load_options)
        self._pipe.set_progress_bar_config(disable=True)

    def choices(self) -> list[str]:
        """Return what the form offers: presets, methods, then published recipes of the model's family."""
        recipes = list_recipes(family=self._card.family.name)
        methods = [name for name in METHODS if name != Dense.name]
        return [*PRESETS, *methods, *(recipe.name for recipe in recipes)]

    def read_choice(self, choice: str) -> dict[str, Any]:
        """Return method, knobs, precisions, guard and levers of a choice as fields of `RenderSettings`."""
        if choice in METHODS:
            return attention_settings(None, {"method": choice}, {})
        return attention_settings(resolve_profile(choice, self.base), {}, {})

    def knobs(self, choice: str) -> dict[str, str]:
        """Return the knobs of a choice with their values as texts."""
        profile = build_profile(dataclasses.replace(self.base, **self.read_choice(choice)))
        values = profile.as_settings()["knobs"]
        names = [name for name in values if "." not in name]
        return {name: format_knob(values.get(name)) for name in (*names, *SCHEDULE_KNOBS)}

    def settings(
        self, choice: str, knobs: Mapping[str, str], values: Mapping[str, Any]
    ) -> RenderSettings:
        """Return the settings of a form.

        Args:
            choice: one of `choices`.
            knobs: texts by knob. Those that are as in `knobs` are left to the choice.
            values: prompt, sizes, steps, scale and seed, as fields of `RenderSettings`; None leaves one to the
                pipeline.

        Raises:
            InvalidSettings: for values that are no settings, or one frame of a video.
        """
        if self.is_video and values["frames"] == 1:
            raise InvalidSettings("a video has 2 or more frames here, got 1")
        chosen, before = self.read_choice(choice), self.knobs(choice)
        changed = {name: text for name, text in knobs.items() if before.get(name) != text.strip()}
        chosen["knobs"] = {**chosen["knobs"], **changed}
        return dataclasses.replace(self.base, **{**chosen, **values})

    def render(self, settings: RenderSettings, progress: Progress) -> Outcome:
        """Render settings dense and accelerated, and write the files.

        Raises:
            InvalidSettings: for settings that do not work.
            RunFailed: if a render or a file fails.
        """
        options = BatchOptions(compare=True, progress=progress)
        with self._lock, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            (job,) = plan_jobs([settings], self.folder, options)
            warn_unreadable([settings.prompt], settings.model)
            rendered = render_job(self._pipe, job, options)
        ours = [w for w in caught if "dit_accel" in Path(w.filename).parts]
        return describe(rendered, list(dict.fromkeys(str(w.message) for w in ours)))


def describe(rendered: Rendered, notes: list[str]) -> Outcome:
    """Return the files and the figures of a comparison."""
    assert rendered.dense is not None
    assert rendered.quality is not None
    clip, both, _ = rendered.files
    figures: str = load_extension("comparison").summary(
        rendered.dense, rendered.clip, rendered.quality, rendered.job.settings.label
    )
    return Outcome(clip, both, figures, rendered.clip.attention._repr_html_(), notes)


def format_knob(value: Any) -> str:
    """Return a value as ``--set`` takes it."""
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
