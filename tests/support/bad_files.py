"""Files that a user may give by mistake, or that somebody made to do harm."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from dit_accel_assets import tiny_world_path

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
SHAPE = {
    "transformer": "WanTransformer3DModel",
    "blocks": {"blocks": 8},
    "heads": 4,
    "head_dim": 64,
}
HEADS = {"format": 1, "model": SHAPE, "heads": [["blocks", 3, [0]]], "settings": {}}

TEXTS: dict[str, str] = {
    "empty.txt": "",
    "comments.txt": "# nothing\n\n",
    "returns.txt": "a fox\ran owl\n",
    "null.txt": "a fox\0\n",
    "header.csv": "id,text\n1,a fox\n",
    "semicolons.csv": "id;text\n1;a fox\n",
    "short.csv": "id,prompt\n1\n",
    "unquoted.csv": "id,prompt\n1,a fox, red\n",
    "open.CSV": 'prompt\n"a fox\n',
    "twice.tsv": "prompt\tprompt\na\tb\n",
    "broken.jsonl": '"a fox"\n{\n',
    "number.jsonl": "3\n",
    "surrogate.jsonl": '"a \\ud800 fox"\n',
    "deep.jsonl": "[" * 100_000 + "\n",
    "object.json": '{"prompt": "a fox"}',
    "list.yaml": "- a fox\n",
    "laughs.yaml": LAUGHS,
    "merged.yaml": MERGED,
    "alias.yaml": "a: &a [*a]\n",
    "deep.yaml": "[" * 2_000,
    "broken.yaml": "method: [svg2\n",
    "scalar.yaml": "svg2\n",
    "nothing.yaml": "",
    "documents.yaml": "method: svg2\n---\nmethod: svg\n",
    "tag.yaml": "method: !!python/object/apply:os.system [ls]\n",
    "bool.yaml": "method: !!bool x\n",
    "date.yaml": "method: 2020-13-45\n",
    "control.yaml": "method: \x01\n",
    "twice.yaml": "method: svg2\nmethod: svg\n",
    "listkey.yaml": "? [a]\n: 1\n",
    "numberkey.yaml": "1: svg2\n",
    "unknown.yaml": "methods: svg2\n",
    "nan.yaml": "method: svg-ear\nknobs: {density: .nan}\n",
    "inf.yaml": "method: svg-ear\nguard: {limit: .inf}\n",
    "huge.yaml": "method: svg-ear\nknobs: {refresh: 1e400}\n",
    "shares.yaml": "method: svg-ear\nknobs: {density: []}\n",
    "rules.yaml": "schedule: {rules: 3}\n",
    "rule.yaml": "schedule: {rules: [{steps: x}]}\n",
    "layers.yaml": "schedule: {dense_layers: [a]}\n",
    "knobs.yaml": "knobs: [1]\n",
    "precision.yaml": "precision: int3\n",
    "nested.yaml": "knobs: {density: {a: 1}}\n",
    "provenance.yaml": "provenance: 3\n",
    "deep.json": "[" * 100_000,
    "levels.json": '{"provenance": ' + "[" * 100 + "]" * 100 + "}",
    "twice.json": '{"method": "svg2", "method": "svg"}',
    "null.json": "null",
    "digits.json": '{"knobs": {"refresh": ' + "9" * 5_000 + "}}",
    "infinity.json": '{"knobs": {"density": Infinity}}',
    "profile.toml": "method = 'svg2'\n",
    "heads.json": "[]",
    "format.json": json.dumps({**HEADS, "format": 2}),
    "billion.json": json.dumps(
        {**HEADS, "model": {**SHAPE, "heads": 10**8}, "heads": [["blocks", 3, "all"]]}
    ),
    "blocks.json": json.dumps({**HEADS, "model": {**SHAPE, "blocks": {"blocks": 10**9}}}),
    "negative.json": json.dumps({**HEADS, "heads": [["blocks", 3, [-1]]]}),
    "block.json": json.dumps({**HEADS, "heads": [["blocks", 99, [0]]]}),
    "entry.json": json.dumps({**HEADS, "heads": [["blocks", "3", [0]]]}),
    "noheads.json": json.dumps({**HEADS, "heads": []}),
    "scale.json": json.dumps({**HEADS, "settings": {"scale": float("nan")}}),
    "setting.json": json.dumps({**HEADS, "settings": {"volume": 11}}),
    "shape.json": json.dumps({**HEADS, "model": {**SHAPE, "heads": "four"}}),
    "other.json": json.dumps({**HEADS, "model": {**SHAPE, "heads": 12}}),
    "text.png": "no image",
    "text.mp4": "no video",
    "lora.bin": "pickle",
}


def write_bad_files(folder: Path) -> None:
    """Write all files of `TEXTS`, and those that are no text."""
    for name, text in TEXTS.items():
        (folder / name).write_bytes(text.encode())
    for name in ("bytes.txt", "bytes.csv", "bytes.jsonl", "bytes.yaml", "bytes.json"):
        (folder / name).write_bytes(b"\xff\xfe\x80 a fox\n")
    for name in ("wide.txt", "wide.csv"):
        (folder / name).write_text("prompt\na fox\n", encoding="utf-16")
    for suffix in ("txt", "csv", "jsonl", "yaml", "json", "png", "mp4", "safetensors"):
        os.mkfifo(folder / f"pipe.{suffix}")
        (folder / f"zero.{suffix}").symlink_to("/dev/zero")
        (folder / f"folder.{suffix}").mkdir()
        (folder / f"loop.{suffix}").symlink_to(folder / f"loop.{suffix}")
    (folder / "large.yaml").write_text("a: 1\n" * 300_000)
    write_bad_images(folder)
    (folder / "empty").mkdir()
    (folder / "search").mkdir()
    (folder / "search" / "search.json").write_text('{"prompts": ["a fox"]}')
    (folder / "deep-search").mkdir()
    (folder / "deep-search" / "search.json").write_text(TEXTS["deep.json"])


def write_bad_images(folder: Path) -> None:
    """Write images without settings, with settings that are wrong, and with text that expands."""
    Image.new("RGB", (8, 8)).save(folder / "plain.png")
    whole = (folder / "plain.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[:40])
    recipes: dict[str, Any] = {
        "recipe-text": "a fox",
        "recipe-key": {"prompt": "a fox", "colour": 3},
        "recipe-frames": {"prompt": "a fox", "frames": 0},
        "recipe-nan": {"prompt": "a fox", "guidance_scale": float("nan")},
        "recipe-none": {},
        "recipe-empty": {"prompt": ""},
        "recipe-seed": {"prompt": "a fox", "seed": -1},
    }
    texts = {name: json.dumps({"dit_accel": recipe}) for name, recipe in recipes.items()}
    texts["recipe-deep"] = "[" * 100_000
    for name, text in texts.items():
        write_png(folder / f"{name}.png", "dit_accel", text)
    write_png(folder / "workflow-list.png", "prompt", "[1]")
    write_png(folder / "workflow-node.png", "prompt", '{"1": 3}')
    write_png(folder / "workflow-inputs.png", "prompt", '{"1": {"class_type": "DitAccelRender"}}')
    chunk = b"zTXtdit_accel\0\0" + zlib.compress(b" " * (8 << 20))
    size, check = len(chunk) - 4, zlib.crc32(chunk)
    expanding = size.to_bytes(4, "big") + chunk + check.to_bytes(4, "big")
    (folder / "expanding.png").write_bytes(whole[:33] + expanding + whole[33:])


def write_png(path: Path, key: str, text: str) -> None:
    """Write an image with a text in its metadata."""
    info = PngImagePlugin.PngInfo()
    info.add_text(key, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


def copy_model(folder: Path) -> None:
    """Copy the JSON files of the bundled model; weights are links."""
    for path in tiny_world_path().rglob("*"):
        target = folder / path.relative_to(tiny_world_path())
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".json":
                shutil.copy(path, target)
            else:
                target.symlink_to(path)


def change_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Replace the value of a JSON file by what a function returns for it."""
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
