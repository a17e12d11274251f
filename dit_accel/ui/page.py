"""Show a studio as a page of Gradio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from dit_accel.core.progress import Part, Progress
from dit_accel.errors import DitAccelError
from dit_accel.ui.studio import Outcome, Studio

VALUES = (
    *("prompt", "negative_prompt", "height", "width", "frames", "steps"),
    *("guidance_scale", "seed"),
)
INTRODUCTION = """# dit_accel
The same noise twice: dense, and accelerated. The model is `{model}` on {device}. Renders run one at a time.
"""
# Seconds between two looks for old copies of files, and their age.
CACHE = (3600, 86400)
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}


class PageDisplay:
    """Shows the parts of a render in the page.

    Args:
        progress: Gradio's progress of the event.
    """

    def __init__(self, progress: gr.Progress) -> None:
        self._progress = progress

    def show(self, part: Part, *, moved: bool) -> None:
        fraction = part.done / part.total if part.total else 0.0
        self._progress(fraction, desc=part.label)

    def end(self, part: Part) -> None:
        self.show(part, moved=True)


def build_page(studio: Studio) -> gr.Blocks:
    """Return the page: a form on the left, the comparison on the right. Nothing is sent to Gradio's makers."""
    with gr.Blocks(title="dit_accel", analytics_enabled=False, delete_cache=CACHE) as page:
        gr.Markdown(INTRODUCTION.format(model=studio.base.model, device=studio.base.device))
        with gr.Row():
            with gr.Column(scale=2):
                values = add_values(studio)
                choice = gr.Dropdown(
                    studio.choices(),
                    value=studio.base.method,
                    label="Preset, method or published settings",
                )
                button = gr.Button("Render", variant="primary")
                knobs = add_knobs(studio, choice)
            with gr.Column(scale=3):
                results = add_results(studio)
        button.click(
            make_render(studio),
            [choice, knobs, *values],
            results,
            api_name=False,
            concurrency_limit=1,
        )
    return page


def add_values(studio: Studio) -> list[Any]:
    """Add the inputs of `VALUES`, with the first values of the studio."""
    base = studio.base
    prompt = gr.Textbox(base.prompt, label="Prompt", lines=2)
    negative = gr.Textbox(base.negative_prompt or "", label="Negative prompt")
    with gr.Row():
        sizes = [
            gr.Number(getattr(base, name), label=name.capitalize(), precision=0, min_width=80)
            for name in ("height", "width")
        ]
        frames = gr.Number(
            base.frames, label="Frames", precision=0, min_width=80, visible=studio.is_video
        )
    with gr.Row():
        steps = gr.Number(base.steps, label="Steps", precision=0, min_width=80)
        scale = gr.Number(base.guidance_scale, label="Guidance scale", min_width=80)
        seed = gr.Number(base.seed, label="Seed", precision=0, min_width=80)
    return [prompt, negative, *sizes, frames, steps, scale, seed]


def add_knobs(studio: Studio, choice: gr.Dropdown) -> gr.Dataframe:
    """Add the table of the knobs of a choice, which follows the choice."""

    def rows(name: str) -> list[list[str]]:
        return [list(row) for row in studio.knobs(name).items()]

    knobs = gr.Dataframe(
        rows(studio.base.method),
        headers=["knob", "value"],
        datatype=["str", "str"],
        type="array",
        static_columns=[0],
        column_count=2,
        interactive=True,
        label="Knobs (explained by: dit-accel methods NAME)",
    )
    choice.change(rows, choice, knobs, api_name=False)
    return knobs


def add_results(studio: Studio) -> list[Any]:
    """Add what a render fills: the player, the file, the figures and the report."""
    label = "Dense on the left, accelerated on the right"
    player = (
        gr.Video(label=label, autoplay=True, loop=True)
        if studio.is_video
        else gr.Image(label=label, type="filepath")
    )
    file = gr.DownloadButton("Download the accelerated clip with its settings", interactive=False)
    figures = gr.Code(
        label="Figures", language=None, interactive=False, wrap_lines=True, show_line_numbers=False
    )
    return [player, file, figures, gr.HTML(label="Attention report", container=True)]


def make_render(studio: Studio) -> Callable[..., Sequence[Any]]:
    """Return the function that a click calls."""

    tracked = gr.Progress()

    # Gradio gives the event's progress in place of the default.
    def render(
        choice: str, rows: list[list[str]], *inputs: Any, progress: Any = tracked
    ) -> Sequence[Any]:
        values = dict(zip(VALUES, inputs, strict=True))
        values["negative_prompt"] = values["negative_prompt"] or None
        shown = Progress(display=lambda: PageDisplay(progress))
        try:
            knobs = {str(name): str(value) for name, value in rows}
            outcome = studio.render(studio.settings(choice, knobs, values), shown)
        except DitAccelError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return show(outcome)

    return render


def show(outcome: Outcome) -> Sequence[Any]:
    """Return the values of the results, and show the warnings."""
    for note in outcome.notes:
        gr.Warning(note)
    file = gr.DownloadButton(value=outcome.clip, interactive=True)
    return outcome.both, file, outcome.figures, outcome.report


def serve(studio: Studio, host: str, port: int, *, opens: bool) -> None:
    """Serve the page until the process is interrupted.

    Args:
        studio: what renders; its weights are loaded.
        host: address to listen at.
        port: port to listen at.
        opens: open the page in the browser.
    """
    build_page(studio).launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=opens,
        allowed_paths=[str(studio.folder)],
        theme=gr.themes.Default(**FONTS),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        quiet=True,
    )
