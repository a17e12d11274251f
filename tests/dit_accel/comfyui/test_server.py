"""The real ComfyUI server with the pack, over HTTP: ``pytest --comfyui=DIR``."""

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

from dit_accel import cli
from dit_accel.cli.replay import read_settings
from dit_accel.comfyui import NODES
from dit_accel.comfyui.workflows import EXAMPLES, RENDER, as_page, as_prompt
from dit_accel.io.media import read_tags


class Server:
    """A running ComfyUI."""

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
        with urllib.request.urlopen(request, timeout=30) as answer:
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
        extra = {"extra_pnginfo": {"workflow": as_page(RENDER)}}
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


def test_the_server_starts_with_every_node_and_no_warning_of_ours(server: Server) -> None:
    found = server.ask("/object_info")
    for node in NODES:
        told = found[node.id]
        assert told["display_name"] == node.title
        assert told["output"] == [output.type for output in node.outputs]
        given = {**told["input"].get("required", {}), **told["input"].get("optional", {})}
        assert set(given) == {i.name for i in node.inputs}
    lines = (server.base / "log.txt").read_text().splitlines()
    ours = [line for line in lines if "dit_accel" in line.lower()]
    assert not [line for line in ours if "warn" in line.lower() or "fail" in line.lower()]
    examples = server.ask("/workflow_templates")
    assert sorted(examples["dit_accel"]) == sorted(EXAMPLES)
    told = server.ask("/object_info")
    for steps in EXAMPLES.values():  # the page fills widgets and sockets by these orders and names
        for step in steps:
            takes = told[step.node]["input"]
            names = [*takes.get("required", {}), *takes.get("optional", {})]
            assert [i.name for i in step.declared.inputs if i.kind != "socket"] == [
                name for name in names if name in step.widgets()
            ]
            assert set(step.links) <= set(names), step.node


def test_the_example_gives_a_video_once_and_then_from_the_cache(
    server: Server, tmp_path, capsys
) -> None:
    outcome = server.outcome(server.queue(as_prompt(RENDER)))
    assert outcome["status"]["status_str"] == "success", outcome["status"]
    (video,) = (server.base / "output").glob("dit_accel_*.webm")
    recipe = read_settings(video)
    assert (recipe["method"], recipe["steps"]) == ("svg-ear", 12)
    assert cli.main(["replay", str(video), "-o", str(tmp_path / "again.mp4")]) == 0
    assert "svg-ear on wan" in capsys.readouterr().out
    again = server.outcome(server.queue(as_prompt(RENDER)))
    cached = next(m for kind, m in again["status"]["messages"] if kind == "execution_cached")
    assert set(cached["nodes"]) >= {"0", "1", "2"}


def test_pictures_and_mp4_carry_the_workflow_even_of_a_cached_render(server: Server) -> None:
    prompt = as_prompt(RENDER)
    del prompt["3"]
    images = ["2", 0]
    own = {
        "4": ("SaveImage", {"images": images, "filename_prefix": "picture"}),
        "5": ("CreateVideo", {"images": images, "fps": 16}),
        "6": ("SaveVideo", {"video": ["5", 0], "format": "mp4", "codec": "h264"}),
    }
    for number, (kind, inputs) in own.items():
        prompt[number] = {"class_type": kind, "inputs": inputs}
    prompt["6"]["inputs"]["filename_prefix"] = "clip"
    outcome = server.outcome(server.queue(prompt))
    assert outcome["status"]["status_str"] == "success", outcome["status"]
    pictures = sorted((server.base / "output").glob("picture_*.png"))
    assert len(pictures) == 17
    (video,) = (server.base / "output").glob("clip_*.mp4")
    for file in (pictures[0], video):
        assert {"prompt", "workflow"} <= set(read_tags(file))
        found = read_settings(file)
        assert (found["method"], found["steps"], found["knobs"]["density"]) == ("svg-ear", 12, 0.3)


def test_wrong_input_is_a_node_error_in_one_line(server: Server) -> None:
    prompt = as_prompt(RENDER)
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


def test_interrupt_ends_the_run_and_leaves_no_patch(server: Server) -> None:
    prompt = as_prompt(RENDER)
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
