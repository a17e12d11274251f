"""The examples: each runs on a tiny random pipeline in place of the model that it names."""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from support.documents import ROOT, links, run_code
from support.launching import launch
from support.tiny_ltx2 import ltx2
from support.tiny_pipelines import TINY, embeds, pooled

import dit_accel.runtime.dispatch
from dit_accel.io.video import read_video_tags
from dit_accel_assets import tiny_world_path

EXAMPLES = ROOT / "examples"
SMALL = {
    '"cuda"': '"cpu"',
    "pipe.enable_model_cpu_offload()": "",
    "height=480, width=832, num_frames=81": "height=32, width=48, num_frames=9, num_inference_steps=3",
}
Builder = Callable[..., Any]


def read_example(name: str, changes: dict[str, str]) -> str:
    """Return the code of an example in which texts are replaced; those that are not in `SMALL` must be in it."""
    code = (EXAMPLES / name).read_text()
    for old, new in {**SMALL, **changes}.items():
        assert old in code or old in SMALL, f"{name} has no {old!r}"
        code = code.replace(old, new)
    return code


def run_example(name: str, changes: dict[str, str] | None = None) -> tuple[dict[str, Any], str]:
    """Run an example. Return its names and what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        names = run_code(read_example(name, changes or {}), Path(name))
    return names, printed.getvalue()


def count_sparse(printed: str) -> int:
    """Return the number of sparse calls in a printed report."""
    found = re.search(r"(\d+) sparse, 0 fallback", printed)
    assert found is not None, printed
    return int(found[1])


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in an empty folder, and make calls with few tokens sparse, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dit_accel.runtime.dispatch, "crossover_tokens", lambda _: 0)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Let `from_pretrained` of a pipeline's class return that pipeline."""

    def replace_loader(pipe: Any) -> Any:
        pipe.set_progress_bar_config(disable=True)
        monkeypatch.setattr(type(pipe), "from_pretrained", lambda *_, **__: pipe)
        return pipe

    return replace_loader


@pytest.mark.parametrize(("name", "calls"), [("wan.py", 3 * 2 * 2), ("own_loop.py", 3 * 2 * 2)])
def test_wan(name: str, calls: int, load: Builder, build_wan: Builder) -> None:
    load(build_wan())
    loop = {"= 480, 832, 81, 50, 5.0": "= 32, 48, 9, 3, 5.0"} if name == "own_loop.py" else {}
    _, printed = run_example(name, loop)
    assert count_sparse(printed) == calls
    assert read_video_tags(Path("fox.mp4"))


def test_both_experts_follow_their_rules(load: Builder, build_wan: Builder) -> None:
    pipe = load(build_wan(two_transformers=True))
    # The first expert has few steps here, and dense ones follow no rule.
    _, printed = run_example("wan22_two_experts.py", {"dense_steps=0.1": "dense_steps=0.0"})
    assert count_sparse(printed) > 0
    assert "never matched" not in printed
    assert set(pipe.attention_report().forwards) == {"transformer", "transformer_2"}


def test_image_to_video(load: Builder, build_wan: Builder) -> None:
    wan = build_wan()
    config = {**wan.transformer.config, "in_channels": 8 + 4 + 8}
    parts = {**wan.components, "transformer": WanTransformer3DModel.from_config(config).eval()}
    del parts["transformer_2"]
    load(WanImageToVideoPipeline(**parts, image_encoder=None, image_processor=None))
    Image.new("RGB", (50, 40), "red").save("start.png")
    _, printed = run_example("image_to_video.py", {"(832, 480)": "(48, 32)"})
    assert count_sparse(printed) == 3 * 2 * 2
    assert read_video_tags(Path("fox.mp4"))


def test_flux(load: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = load(TINY["flux"].build())
    pipe.vae.register_to_config(shift_factor=0.0)
    texts = embeds(1), pooled(1), torch.zeros(5, 3)
    monkeypatch.setattr(pipe, "encode_prompt", lambda **_: texts)
    small = "height=16, width=24, num_inference_steps=3"
    _, printed = run_example("flux.py", {"height=2048, width=2048": small})
    assert count_sparse(printed) == 2 * 4
    assert Image.open("fox.png").size == (24, 16)


def test_ltx2_keeps_its_sound(load: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = load(ltx2())
    written: dict[str, Any] = {}
    monkeypatch.setattr(
        diffusers.utils, "encode_video", lambda video, **given: written.update(given, video=video)
    )
    size = {"height=1024": "height=32", "width=1536": "width=64"}
    frames = {
        "num_frames=121": "num_frames=9, num_inference_steps=3, stg_scale=0.0, audio_stg_scale=0.0"
    }
    _, printed = run_example("ltx2.py", size | frames)
    assert count_sparse(printed) > 0
    assert written["video"].shape == (9, 32, 64, 3)
    assert written["audio"].shape[0] == 2
    assert written["audio_sample_rate"] == pipe.vocoder.config.output_sampling_rate


def test_lora(load: Builder, build_wan: Builder, tmp_path: Path) -> None:
    adapter = LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    other = build_wan()
    other.transformer.add_adapter(adapter)
    layers = get_peft_model_state_dict(other.transformer)
    WanPipeline.save_lora_weights(tmp_path / "lora", transformer_lora_layers=layers)
    pipe = load(build_wan())
    kept = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    source = {'"benjamin-paine/steamboat-willie-1.3b"': f'"{tmp_path / "lora"}"'}
    _, printed = run_example("lora.py", source)
    assert count_sparse(printed) == 3 * 2 * 2
    after = pipe.transformer.state_dict()
    assert kept.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in kept.items())


def test_serve_answers_two_at_once(load: Builder, build_wan: Builder) -> None:
    load(build_wan())
    names, _ = run_example("serve.py", {'"127.0.0.1", 8000': '"127.0.0.1", 0'})
    server = names["server"]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    answers: list[bytes] = []

    def ask(query: str) -> None:
        address = f"http://127.0.0.1:{server.server_address[1]}/{query}"
        answers.append(urllib.request.urlopen(address, timeout=60).read())

    threads = [threading.Thread(target=ask, args=("?prompt=a+red+circle",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(urllib.error.HTTPError, match="give"):
        ask("")
    server.shutdown()
    server.server_close()
    assert [answer[4:8] for answer in answers] == [b"ftyp", b"ftyp"]


@pytest.mark.slow
def test_tune_searches_and_uses_what_it_found(load: Builder) -> None:
    Path("prompts.txt").write_text(
        "a red circle moving up on a navy background\n"
        "a blue square moving left on a black background\n"
    )
    model = '"Wan-AI/Wan2.1-T2V-1.3B-Diffusers"'
    changes = {
        f"model = {model}": 'model = "tiny-world"',
        '"--frames", "81", "--steps", "50"': '"--frames", "5", "--steps", "2"',
        '"480"': '"32"',
        '"832"': '"32"',
        '"bfloat16"': '"float32"',
        '"psnr>=25"': '"ssim>=-1", "--speedup", "0.01", "--clips", "2", "--validate", "8", "--trials", "1"',
        "from_pretrained(model": f'from_pretrained("{tiny_world_path()}"',
    }
    _, printed = run_example("tune.py", changes)
    assert "written: mine.yaml" in printed
    assert "on wan: " in printed


@pytest.mark.slow
def test_several_processes_split_a_clip(tmp_path: Path) -> None:
    changes = {
        'f"cuda:{rank}"': '"cpu"',
        "torch.accelerator.set_device_index(rank)": "torch.accelerator.device_count = lambda: 1",
        '"Wan-AI/Wan2.1-T2V-1.3B-Diffusers"': f'"{tiny_world_path()}"',
        "init_process_group()": 'init_process_group("cpu:gloo")',
        '"height": 480, "width": 832, "num_frames": 81': (
            '"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2'
        ),
        "print(pipe.attention_report())": 'open("report.txt", "w").write(str(pipe.attention_report()))',
    }
    script = tmp_path / "example.py"
    script.write_text(read_example("several_gpus.py", changes))
    assert launch(2, [str(script)], []) == 0
    assert "on wan: " in (tmp_path / "report.txt").read_text()
    assert read_video_tags(tmp_path / "fox.mp4")


def test_every_example_is_run() -> None:
    code = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in code] == []


def test_the_list_of_examples_is_complete() -> None:
    listed = {link for link in links(EXAMPLES / "README.md") if "/" not in link}
    assert listed == {path.name for path in EXAMPLES.iterdir()} - {"README.md"}


def read_notebook() -> list[dict[str, Any]]:
    """Return the cells of the notebook, with a size that takes seconds."""
    text = (EXAMPLES / "tour.ipynb").read_text()
    old = r"{\"height\": 256, \"width\": 256, \"num_frames\": 49, \"num_inference_steps\": 12}"
    new = r"{\"height\": 32, \"width\": 32, \"num_frames\": 5, \"num_inference_steps\": 2}"
    assert old in text
    cells: list[dict[str, Any]] = json.loads(text.replace(old, new))["cells"]
    return cells


def test_the_notebook_is_code_that_runs_and_holds_its_outputs(tmp_path: Path) -> None:
    cells = [cell for cell in read_notebook() if cell["cell_type"] == "code"]
    code = "\n".join("".join(cell["source"]) for cell in cells)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        names = run_code(code, tmp_path / "tour.py")
    assert printed.getvalue().splitlines()[-1] == "True"  # bit for bit as before
    assert "sparse calls" in names["report"]._repr_html_()
    assert all(cell["outputs"] for cell in cells[1:])


@pytest.mark.slow
def test_the_notebook_runs_in_jupyter(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    for cell, quick in zip(notebook.cells, read_notebook(), strict=True):
        cell.source = "".join(quick["source"])
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": tmp_path}}
    ).execute()
    kinds = {output.output_type for cell in notebook.cells for output in cell.get("outputs", [])}
    assert "error" not in kinds
    assert any(
        "<table>" in str(output) for cell in notebook.cells for output in cell.get("outputs", [])
    )
