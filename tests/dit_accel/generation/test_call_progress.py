"""The parts of a pipeline's call: prompt, denoising and decoding, with the number of steps."""

import io

import pytest

from dit_accel.core import progress as progress_module
from dit_accel.core.progress import Progress
from dit_accel.generation.call_progress import show_call


class FakePipe:
    """Draws bars as diffusers' pipelines do, and as its older ones do."""

    def progress_bar(self, iterable=None, total=None):
        raise AssertionError("the pipeline's own bar was drawn")

    def __call__(self, steps: int, *, iterates: bool) -> None:
        if iterates:
            for _ in self.progress_bar(range(steps)):
                pass
            return
        with self.progress_bar(total=steps) as bar:
            for _ in range(steps):
                bar.set_postfix(loss=1)
                bar.update()


@pytest.mark.parametrize("iterates", [False, True])
def test_the_parts_follow_each_other(monkeypatch, iterates: bool) -> None:
    monkeypatch.setattr(progress_module, "SHORTEST", 0.0)
    pipe, stream = FakePipe(), io.StringIO()
    with show_call(pipe, Progress(stream), clip="clip 2 of 5"):
        pipe(4, iterates=iterates)
    assert [line.split(",")[0] for line in stream.getvalue().splitlines()] == [
        "encoding the prompt of clip 2 of 5",
        "denoising clip 2 of 5",
        *(f"denoising clip 2 of 5: step {step} of 4" for step in (1, 2, 3, 4)),
        "decoding clip 2 of 5",
    ]
    assert "progress_bar" not in vars(pipe)


def test_a_real_pipeline_is_shown_and_gets_its_bar_back(wan, run_wan) -> None:
    stream = io.StringIO()
    with show_call(wan, Progress(stream, verbose=True)):
        shown = run_wan(wan)
    lines = [line.split(",")[0] for line in stream.getvalue().splitlines()]
    assert [line for line in lines if " s" not in line] == [
        *("encoding the prompt", "denoising", "decoding")
    ]
    assert lines.count("denoising: step 4 of 4") == 1
    assert "progress_bar" not in vars(wan)
    assert (run_wan(wan) == shown).all()


def test_an_error_ends_the_part_and_gives_the_bar_back() -> None:
    pipe, stream = FakePipe(), io.StringIO()
    with pytest.raises(RuntimeError), show_call(pipe, Progress(stream)):
        raise RuntimeError
    assert "progress_bar" not in vars(pipe)
