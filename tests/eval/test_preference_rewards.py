"""PickScore and its company equal their formulas on tiny random models, and say what is missing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.tiny_clip import WIDTH, save_tiny_clip

from dit_accel.cli import main
from dit_accel.errors import InvalidSettings
from dit_accel_eval.heads.rewards import check_reward, load_reward

NAMES = ("PickScore_v1", "CLIP-ViT-H-14-laion2B-s32B-b79K", "clip-vit-large-patch14")
LAYERS = {0: (6, WIDTH), 2: (4, 6), 4: (1, 4)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Save the four models in one folder; numbers of layers between the linear ones belong to dropout."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, name in enumerate(NAMES):
        save_tiny_clip(folder / name, seed)
    for name in ("tokenizer.json", "preprocessor_config.json", "processor_config.json"):
        (folder / NAMES[0] / name).unlink(missing_ok=True)
    generator = torch.Generator().manual_seed(9)
    tensors = {"clip.logit_scale": torch.zeros(1)}
    for number, shape in LAYERS.items():
        tensors[f"mlp.layers.{number}.weight"] = torch.randn(shape, generator=generator)
        tensors[f"mlp.layers.{number}.bias"] = torch.randn(shape[0], generator=generator)
    (folder / "laion-aesthetic").mkdir()
    save_file(tensors, folder / "laion-aesthetic/model.safetensors")
    return folder


def compute_logits(folder: Path, processor: Path, frame: np.ndarray, text: str):
    """Return the logit and the normalised image embedding that transformers' own forward computes."""
    from transformers import CLIPModel, CLIPProcessor

    image = Image.fromarray((frame * 255).round().astype(np.uint8))
    inputs = CLIPProcessor.from_pretrained(processor)(
        text=[text], images=image, return_tensors="pt", padding=True
    )
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        out = CLIPModel.from_pretrained(folder).eval()(**inputs)
    return float(out.logits_per_image), out.image_embeds[0].double().numpy()


def test_rewards_equal_their_formulas(weights: Path) -> None:
    frames = np.random.default_rng(0).random((3, 40, 32, 3)).astype(np.float32)
    parts = load_reward("pickscore-thresholding-clip", str(weights))
    pick, _ = compute_logits(weights / NAMES[0], weights / NAMES[1], frames[1], "a fox")
    prefixed = "A photo depicts a fox"
    clip, embedding = compute_logits(weights / NAMES[2], weights / NAMES[2], frames[1], prefixed)
    assert parts["pick"](frames, "a fox") == pytest.approx(pick, abs=1e-4)
    assert parts["clip"](frames, "a fox") == pytest.approx(clip, abs=1e-4)
    assert pick != pytest.approx(clip, abs=1e-2)
    layers = load_file(weights / "laion-aesthetic/model.safetensors")
    for number in LAYERS:
        names = [f"mlp.layers.{number}.{kind}" for kind in ("weight", "bias")]
        embedding = layers[names[0]].double().numpy() @ embedding + layers[names[1]].numpy()
    assert parts["aesthetic"](frames, "a fox") == pytest.approx(float(embedding[0]), abs=1e-4)
    assert load_reward("harmonic-pick-clip", str(weights)).keys() == {"pick", "clip"}
    assert load_reward("pickscore", str(weights))["score"](frames, "a fox") == pytest.approx(
        pick, abs=1e-4
    )


def test_the_hub_cache_is_found_without_a_download(weights: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = "reward pickscore: yuvalkirstain/PickScore_v1 is not in the hub's local cache"
    with pytest.raises(InvalidSettings, match=message):
        check_reward("pickscore", ("a fox",))
    for owner, name in zip(("yuvalkirstain", "laion"), NAMES[:2], strict=True):
        repository = tmp_path / f"models--{owner}--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text("abc")
        (repository / "snapshots").mkdir()
        (repository / "snapshots/abc").symlink_to(weights / name)
    check_reward("pickscore", ("a fox",))
    frame = np.zeros((1, 32, 32, 3), np.float32)
    expected, _ = compute_logits(weights / NAMES[0], weights / NAMES[1], frame[0], "a fox")
    assert load_reward("pickscore")["score"](frame, "a fox") == pytest.approx(expected, abs=1e-4)


def test_missing_and_damaged_weights_are_one_line(weights: Path, tmp_path, capsys) -> None:
    with pytest.raises(InvalidSettings, match=r"there is no folder .*PickScore_v1 with"):
        check_reward("pickscore", ("a fox",), str(tmp_path))
    with pytest.raises(InvalidSettings, match="reward sharpness reads no weights"):
        check_reward("sharpness", ("a fox",), str(weights))
    for name in NAMES:
        (tmp_path / name).symlink_to(weights / name)
    check_reward("harmonic-pick-clip", ("a fox",), str(tmp_path))
    (tmp_path / "laion-aesthetic").mkdir()
    (tmp_path / "laion-aesthetic/model.bin").write_bytes(b"a pickle")
    with pytest.raises(InvalidSettings, match=r"RE-N-Y/laion-aesthetic has no \.safetensors file"):
        check_reward("pickscore-thresholding-clip", ("a fox",), str(tmp_path))
    for tensors, message in (
        ({"other": torch.zeros(1)}, "holds no aesthetic predictor"),
        (
            {"mlp.layers.0.weight": torch.zeros(1, 3), "mlp.layers.0.bias": torch.zeros(1)},
            "does not fit openai/clip-vit-large-patch14",
        ),
    ):
        save_file(tensors, tmp_path / "laion-aesthetic/model.safetensors")
        with pytest.raises(InvalidSettings, match=message):
            load_reward("pickscore-thresholding-clip", str(tmp_path))
    (tmp_path / "p.txt").write_text("a fox")
    search = ["heads", "search", f"--prompts={tmp_path / 'p.txt'}", "--reward=pickscore"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main([*search, f"--reward-weights={empty}", f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: reward pickscore: there is no folder")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_pickled_weights_are_never_read(weights: Path, tmp_path) -> None:
    """Another safetensors file lies beside the pickle, so the folder looks complete."""
    for name in NAMES[1:]:
        (tmp_path / name).symlink_to(weights / name)
    folder = tmp_path / NAMES[0]
    folder.mkdir()
    (folder / "config.json").write_bytes((weights / NAMES[0] / "config.json").read_bytes())
    torch.save(load_file(weights / NAMES[0] / "model.safetensors"), folder / "pytorch_model.bin")
    save_file({"other": torch.zeros(1)}, folder / "other.safetensors")
    with pytest.raises(InvalidSettings, match="does not hold a CLIP model"):
        load_reward("pickscore", str(tmp_path))
