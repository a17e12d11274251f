"""The node pack in a real ComfyUI server, over HTTP: ``pytest --comfyui=DIR``."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.comfyui_workflows import WORKFLOWS, load_workflow, read_widgets, to_prompt

from dit_accel import cli
from dit_accel.cli.replay import read_settings
from dit_accel.comfyui.help_pages import format_page
from dit_accel.comfyui.knob_inputs import knob_inputs
from dit_accel.comfyui.registry import NODES
from dit_accel.io.media import read_tags

RENDER = load_workflow("tiny_world_render")


class Server:
    """A running ComfyUI server."""

    def __init__(self, folder: Path, base: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.base = f"http://127.0.0.1:{port}", base
        self.log = (base / "log.txt").open("w")
        command = [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
        command += ["--base-directory", str(base), "--disable-all-custom-nodes"]
        command += ["--whitelist-custom-nodes", "dit_accel"]
        self.process = subprocess.Popen(command, cwd=folder, stdout=self.log, stderr=self.log)

    def ask(self, path: str, value: Any = None) -> Any:
        data = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def wait(self) -> None:
        for _ in range(240):
            assert self.process.poll() is None, (self.base / "log.txt").read_text()[-2000:]
            try:
                self.ask("/queue")
                return
            except OSError:
                time.sleep(0.5)
        raise AssertionError((self.base / "log.txt").read_text()[-2000:])

    def queue(self, prompt: dict) -> str:
        extra = {"extra_pnginfo": {"workflow": RENDER}}
        return self.ask("/prompt", {"prompt": prompt, "extra_data": extra})["prompt_id"]

    def outcome(self, prompt_id: str) -> dict:
        for _ in range(600):
            history = self.ask(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.2)
        raise AssertionError("no outcome")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[Server]:
    folder: Path | None = request.config.getoption("--comfyui")
    if folder is None:
        pytest.skip("needs a ComfyUI: pytest --comfyui=DIR")
    base = tmp_path_factory.mktemp("comfyui")
    (base / "custom_nodes").mkdir()
    assert cli.main(["comfyui", "install", str(base)]) == 0
    running = Server(folder, base)
    try:
        running.wait()
        yield running
    finally:
        running.process.terminate()
        running.process.wait(30)
        running.log.close()


def test_server_starts_with_all_nodes_and_without_warnings(server: Server) -> None:
    classes = server.ask("/object_info")
    has_dynamic = "COMFY_DYNAMICCOMBO_V3" in json.dumps(classes)
    for node in NODES:
        if node.is_dynamic and not has_dynamic:
            assert node.id not in classes
            continue
        registered = classes[node.id]
        assert registered["display_name"] == node.title
        assert registered["output"] == [output.type for output in node.outputs]
        assert set(list_inputs(registered)) == {declared.name for declared in node.inputs}
    lines = (server.base / "log.txt").read_text().splitlines()
    ours = [line for line in lines if "dit_accel" in line.lower()]
    assert not [line for line in ours if "warn" in line.lower() or "fail" in line.lower()]
    examples = server.ask("/workflow_templates")
    assert sorted(examples["dit_accel"]) == sorted(WORKFLOWS)


def test_page_finds_the_help_of_nodes(server: Server) -> None:
    for node in NODES:
        url = f"{server.url}/extensions/dit_accel/docs/{node.id}.md"
        with urllib.request.urlopen(url, timeout=120) as answer:
            assert answer.read().decode() == format_page(node)


def test_widgets_of_knobs_render(server: Server) -> None:
    """The page stores the widgets that a choice adds as CHOICE.INPUT."""
    classes = server.ask("/object_info")
    if "DitAccelMethod" not in classes:
        pytest.skip("this ComfyUI has no dynamic inputs")
    prompt = to_prompt(RENDER)
    run = {"dense_steps": 0.2, "precision": "full", "dense_precision": "full", "guard": "off"}
    knobs = {f"method.{knob.name}": knob.default for knob in knob_inputs("svg2")}
    knobs |= {"method": "svg2", "method.top_p": 0.4, "more": "schedule.min_tokens=0"}
    prompt["1"] = {"class_type": "DitAccelMethod", "inputs": {**knobs, **run}}
    prompt["2"]["inputs"] |= {"steps": 3}
    prompt["3"]["inputs"]["filename_prefix"] = "knobs"
    outcome = server.outcome(server.queue(prompt))
    assert outcome["status"]["status_str"] == "success", outcome["status"]
    (video,) = (server.base / "output").glob("knobs_*.webm")
    settings = read_settings(video)
    assert (settings["method"], settings["knobs"]["top_p"]) == ("svg2", 0.4)
    assert any("svg2 on wan" in text for text in outcome["outputs"]["4"]["text"])
    prompt["1"]["inputs"]["method.top_p"] = 4.0
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.queue(prompt)
    assert b"top_p must be" in refused.value.read()


def list_inputs(registered: dict) -> list[str]:
    """Return the names of a registered node's inputs, in the order of the page."""
    inputs = registered["input"]
    return [*inputs.get("required", {}), *inputs.get("optional", {})]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_fit_the_registered_nodes(server: Server, name: str) -> None:
    """The page fills widgets by their order, and sockets by their name."""
    classes = server.ask("/object_info")
    for node in load_workflow(name)["nodes"]:
        names, widgets = list_inputs(classes[node["type"]]), read_widgets(node)
        assert [name for name in names if name in widgets] == list(widgets)
        assert {socket["name"] for socket in node["inputs"]} <= set(names), node["type"]


def test_example_renders_a_video_and_then_uses_the_cache(server: Server, tmp_path, capsys) -> None:
    outcome = server.outcome(server.queue(to_prompt(RENDER)))
    assert outcome["status"]["status_str"] == "success", outcome["status"]
    (video,) = (server.base / "output").glob("dit_accel_*.webm")
    settings = read_settings(video)
    assert (settings["method"], settings["steps"]) == ("svg-ear", 12)
    assert cli.main(["replay", str(video), "-o", str(tmp_path / "again.mp4")]) == 0
    assert "svg-ear on wan" in capsys.readouterr().out
    again = server.outcome(server.queue(to_prompt(RENDER)))
    cached = next(m for kind, m in again["status"]["messages"] if kind == "execution_cached")
    assert set(cached["nodes"]) >= {"0", "1", "2"}


def test_images_and_mp4_contain_the_workflow_of_a_cached_render(server: Server) -> None:
    prompt = to_prompt(RENDER)
    del prompt["3"]
    images = ["2", 0]
    core_nodes = {
        "4": ("SaveImage", {"images": images, "filename_prefix": "image"}),
        "5": ("CreateVideo", {"images": images, "fps": 16}),
        "6": ("SaveVideo", {"video": ["5", 0], "format": "mp4", "codec": "h264"}),
    }
    for number, (kind, inputs) in core_nodes.items():
        prompt[number] = {"class_type": kind, "inputs": inputs}
    prompt["6"]["inputs"]["filename_prefix"] = "clip"
    outcome = server.outcome(server.queue(prompt))
    assert outcome["status"]["status_str"] == "success", outcome["status"]
    images = sorted((server.base / "output").glob("image_*.png"))
    assert len(images) == 17
    (video,) = (server.base / "output").glob("clip_*.mp4")
    for file in (images[0], video):
        assert {"prompt", "workflow"} <= set(read_tags(file))
        settings = read_settings(file)
        assert (settings["method"], settings["steps"]) == ("svg-ear", 12)
        assert settings["knobs"]["density"] == 0.3


@pytest.mark.parametrize(
    ("kind", "suffix", "options"),
    [
        ("SaveAnimatedWEBP", "webp", {"lossless": False, "quality": 80, "method": "fastest"}),
        ("SaveAnimatedPNG", "png", {"compress_level": 4}),
    ],
)
@pytest.mark.parametrize("frames", [17, 1])
def test_animations_contain_the_settings(server, kind, suffix, options, frames) -> None:
    prompt = to_prompt(RENDER)
    name = f"animated{frames}"
    inputs = {"images": ["2", 0], "filename_prefix": name, "fps": 16, **options}
    prompt["2"]["inputs"] |= {"frames": frames, "steps": 2}
    prompt["3"] = {"class_type": kind, "inputs": inputs}
    outcome = server.outcome(server.queue(prompt))
    assert outcome["status"]["status_str"] == "success", outcome["status"]
    (file,) = (server.base / "output").glob(f"{name}_*.{suffix}")
    settings = read_settings(file)
    assert (settings["frames"], settings["knobs"]["density"]) == (frames, 0.3)


def test_invalid_input_is_a_node_error_in_one_line(server: Server) -> None:
    prompt = to_prompt(RENDER)
    prompt["2"]["inputs"] |= {"frames": 18}
    outcome = server.outcome(server.queue(prompt))
    kind, error = outcome["status"]["messages"][-1]
    assert kind == "execution_error"
    assert error["node_type"] == "DitAccelRender"
    assert error["exception_message"].strip().startswith("frames 18 is not 4k")
    prompt["2"]["inputs"] |= {"frames": 17, "steps": 0}
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.queue(prompt)
    assert b"value_smaller_than_min" in refused.value.read()


def test_interrupt_ends_the_run_and_restores_the_pipeline(server: Server) -> None:
    prompt = to_prompt(RENDER)
    prompt["2"]["inputs"] |= {"steps": 400, "seed": 5}
    number = server.queue(prompt)
    for _ in range(100):
        if server.ask("/queue")["queue_running"]:
            break
        time.sleep(0.1)
    time.sleep(3)
    server.ask("/interrupt", {})
    outcome = server.outcome(number)
    assert outcome["status"]["messages"][-1][0] == "execution_interrupted"
    prompt["2"]["inputs"] |= {"steps": 2}
    assert server.outcome(server.queue(prompt))["status"]["status_str"] == "success"
