"""Train the bundled tiny world in stages: ``vae``, ``latents``, ``text``, ``dit`` and ``export``.

assets/README.md shows their order. Each stage is seeded, logs to JSONL and saves safetensors checkpoints to
``--out``. It starts from the weights in ``--model``, by default the committed folder, with a fresh optimizer.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoTokenizer, UMT5EncoderModel

from dit_accel_assets import tiny_world_path
from dit_accel_assets.world import SIZES, caption, render, sample_scenes, trace_path
from tiny_world_readers import TEXT_TOKENS, PhraseReader, phrase_batch, token_labels
from tiny_world_student import (
    READ_WEIGHT,
    Clips,
    Student,
    create_optimizers,
    noise_levels,
    replace_attention,
    update_average,
)

# Replaces sampling from the posterior: latents stay smooth, and their scale stays free.
LATENT_NOISE = 0.1

# Values of max_sequence_length in pipeline calls; 512 is the default.
PROMPT_LENGTHS = (32, 128, 226, 512)

# Share of clips that are trained with an empty caption, for classifier-free guidance.
EMPTY_CAPTIONS = 0.1

# Clips per file.
SHARD = 100

# More tokens need more noise to hide the same content.
NOISE_SHIFT = {"smoke": 2.0, "study": 2.5, "show": 3.0}

# Attention to a word two positions away needs biases of several units, but Adam changes a parameter by about the
# learning rate per step. Therefore biases have a higher learning rate.
BIAS, BIAS_LR_FACTOR = "relative_attention_bias", 30.0


def lr_factor(step: int, done: float, warmup: int = 50) -> float:
    """Return a learning-rate factor that rises for ``warmup`` steps, then falls to zero as ``done`` goes to 1."""
    return min((step + 1) / warmup, max(0.0, 1 - done))


class Smoothed:
    """Exponential averages of named values."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.values: dict[str, float] = {}

    def add(self, name: str, value: float) -> None:
        """Add a value; the first one sets the average."""
        average = self.values.get(name, value)
        self.values[name] = self.decay * average + (1 - self.decay) * value


def log_line(path: Path, figures: Mapping[str, float]) -> None:
    """Append figures to a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(figures) + "\n")


def crop_around_object(rng: np.random.Generator, side: int, frames: int) -> np.ndarray:
    """Return a piece ``[frames, side, side, 3]`` of a random clip, in four of five cases near an object."""
    height, width, length = SIZES[rng.choice(list(SIZES))]
    scene = next(sample_scenes(rng, [int(rng.integers(1, 3))], held_out=False))
    start = int(rng.integers(0, length - frames + 1))
    x, y = rng.uniform(0, 1, 2)
    if rng.uniform() < 0.8:
        time = np.array([(start + rng.uniform(0, frames)) / length])
        x, y = trace_path(scene.things[-1], time)[0] + rng.normal(0, 0.06, 2)
    top = int(np.clip(y * height - side / 2, 0, height - side))
    left = int(np.clip(x * width - side / 2, 0, width - side))
    window = (slice(start, start + frames), slice(top, top + side), slice(left, left + side))
    return render(scene, height, width, length, window)


def crop_batches(seed: int) -> Iterator[Tensor]:
    """Yield batches ``[B, 3, T, H, W]`` in [-1, 1] without end.

    The numbers of frames cover all paths through the causal feature cache of Wan's VAE.
    """
    rng = np.random.default_rng(seed)
    while True:
        side, batch = ((32, 16), (48, 8))[int(rng.integers(2))]
        frames = int(rng.choice([1, 5, 9, 13, 17, 17]))
        clips = np.stack([crop_around_object(rng, side, frames) for _ in range(batch)])
        yield torch.from_numpy(clips).permute(0, 4, 1, 2, 3) * 2 - 1


def set_channels_last(model: nn.Module) -> None:
    """Store the weights of 3-D convolutions channels-last, which is a fifth faster on CPU."""
    for parameter in model.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)


def reconstruction_loss(vae: AutoencoderKLWan, clip: Tensor) -> Tensor:
    """Return the mean absolute error plus four times the mean squared error of a decoded clip."""
    latent = vae.encode(clip).latent_dist.mode()
    decoded = vae.decode(latent + LATENT_NOISE * torch.randn_like(latent)).sample
    error = decoded.float() - clip
    return error.abs().mean() + 4 * error.square().mean()


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Train the tiny world."""


@main.command("vae")
@click.option("--model", type=click.Path(path_type=Path), default=tiny_world_path())
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--steps", default=3000)
@click.option("--lr", default=2e-3)
@click.option("--seed", default=0)
@click.option("--device", default="cpu")
@click.option(
    "--decoder-only", is_flag=True, help="Keep the encoder, because clips are already encoded."
)
def train_vae(
    model: Path, out: Path, steps: int, lr: float, seed: int, device: str, decoder_only: bool
) -> None:
    """Train the VAE on crops of clips of all sizes."""
    torch.manual_seed(seed)
    vae = AutoencoderKLWan.from_pretrained(model / "vae", dtype=torch.float32).to(device)
    if decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    set_channels_last(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, weight_decay=1e-4, betas=(0.9, 0.98))
    batches, start, losses = crop_batches(seed), time.time(), Smoothed(0.98)
    for step in tqdm(range(steps), desc="vae"):
        for group in optimizer.param_groups:
            group["lr"] = lr * lr_factor(step, step / steps)
        clip = next(batches).to(device).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(device, torch.bfloat16):
            loss = reconstruction_loss(vae, clip)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        losses.add("loss", loss.item())
        if step % 100 == 99:
            figures = {"step": step + 1, **losses.values, "seconds": time.time() - start}
            log_line(out / "vae.jsonl", figures)
        if step % 400 == 399 or step == steps - 1:
            vae.save_pretrained(out / "vae")


@main.command("latents")
@click.option("--model", type=click.Path(path_type=Path), default=tiny_world_path())
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--size", type=click.Choice(list(SIZES)), default="smoke")
@click.option("--clips", default=4000)
@click.option("--one-object", default=0.5, help="Share of clips with a single object.")
@click.option("--seed", default=0)
@click.option("--device", default="cpu")
@torch.no_grad()
def encode_latents(
    model: Path, out: Path, size: str, clips: int, one_object: float, seed: int, device: str
) -> None:
    """Render and encode clips; save latents, caption tokens and labels as safetensors shards."""
    vae = AutoencoderKLWan.from_pretrained(model / "vae", dtype=torch.float32).to(device)
    set_channels_last(vae)
    tokenizer = AutoTokenizer.from_pretrained(model / "tokenizer")
    mean, std = (
        torch.tensor(v, device=device).view(1, -1, 1, 1, 1)
        for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    folder = out / "latents" / size
    folder.mkdir(parents=True, exist_ok=True)
    for shard in tqdm(range(clips // SHARD), desc=f"encode {size}"):
        path = folder / f"{seed}-{shard:04d}.safetensors"
        if path.exists() and "labels" in set(safe_open(path, "pt").keys()):
            continue
        rng = np.random.default_rng(1000 * seed + shard)
        objects = np.where(rng.uniform(size=SHARD) < one_object, 1, 2)
        scenes = list(sample_scenes(rng, objects.tolist(), held_out=False))
        texts = [caption(scene) for scene in scenes]
        tokens = tokenizer(texts, padding="max_length", max_length=TEXT_TOKENS)["input_ids"]
        videos = (torch.from_numpy(render(scene, *SIZES[size])).to(device) for scene in scenes)
        latents = [((encode(vae, video) - mean) / std).bfloat16().cpu() for video in videos]
        labels = np.stack([token_labels(scene, *SIZES[size]) for scene in scenes])
        tensors = {
            "latents": torch.cat(latents).contiguous(),
            "tokens": torch.tensor(tokens),
            "labels": torch.from_numpy(labels),
        }
        temporary = path.with_suffix(".part")
        save_file(tensors, temporary)
        temporary.replace(path)


def encode(vae: AutoencoderKLWan, clip: Tensor) -> Tensor:
    """Return the float32 latents ``[1, C, t, h, w]`` of a clip ``[T, H, W, 3]`` in [0, 1]."""
    pixels = clip[None].permute(0, 4, 1, 2, 3) * 2 - 1
    with torch.autocast(clip.device.type, torch.bfloat16):
        return (
            vae.encode(pixels.contiguous(memory_format=torch.channels_last_3d))
            .latent_dist.mode()
            .float()
        )


@main.command("text")
@click.option("--model", type=click.Path(path_type=Path), default=tiny_world_path())
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--steps", default=3000)
@click.option("--lr", default=2e-3)
@click.option("--seed", default=0)
@click.option("--device", default="cpu")
def train_text(model: Path, out: Path, steps: int, lr: float, seed: int, device: str) -> None:
    """Train the text encoder to know which words of a caption belong together."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = AutoTokenizer.from_pretrained(model / "tokenizer")
    encoder = UMT5EncoderModel.from_pretrained(model / "text_encoder", dtype=torch.float32)
    reader = PhraseReader(encoder).to(device)
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for n, p in reader.named_parameters() if (BIAS in n) == is_bias],
                "lr_factor": factor,
            }
            for is_bias, factor in ((False, 1.0), (True, BIAS_LR_FACTOR))
        ],
        weight_decay=0.0,
        betas=(0.9, 0.98),
    )
    losses = Smoothed(0.95)
    for step in tqdm(range(steps), desc="text"):
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"] * lr_factor(step, step / steps)
        loss = reader(*(x.to(device) for x in phrase_batch(tokenizer, rng, 64)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        losses.add("loss", loss.item())
        if step % 100 == 99 or step == steps - 1:
            log_line(out / "text.jsonl", {"step": step + 1, **losses.values})
    encoder.save_pretrained(out / "text_encoder")


@main.command("dit")
@click.option("--model", type=click.Path(path_type=Path), default=tiny_world_path())
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--steps", default=4000)
@click.option("--minutes", default=math.inf, help="Stop after this time, at any step.")
@click.option("--lr", default=1e-3)
@click.option("--study-share", default=0.08, help="Share of steps on `study` clips.")
@click.option("--show-share", default=0.03, help="Share of steps on `show` clips.")
@click.option("--opening-share", default=0.3, help="Share of steps on first frames only.")
@click.option(
    "--orbit-copies",
    default=1,
    help="How often a clip with an object that moves in a circle comes in a round. The object's phase, which "
    "all frames share, is the hardest thing to learn.",
)
@click.option("--noise-shift", type=float, help="Shift towards noise.  [default: by size]")
@click.option(
    "--train-text",
    is_flag=True,
    help="Also train the text encoder, which then forgets part of what `text` taught it.",
)
@click.option("--seed", default=0)
@click.option("--device", default="cpu")
@click.option("--compile/--eager", "compiled", default=True)
def train_dit(
    model: Path,
    out: Path,
    steps: int,
    minutes: float,
    lr: float,
    study_share: float,
    show_share: float,
    opening_share: float,
    orbit_copies: int,
    noise_shift: float | None,
    train_text: bool,
    seed: int,
    device: str,
    compiled: bool,
) -> None:
    """Train the transformer on the encoded clips."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    clips = {size: Clips(out, size, rng, orbit_copies) for size in SIZES}
    shares = np.array([1 - study_share - show_share, study_share, show_share])
    shares = shares * [bool(clips[size].data) for size in SIZES]
    student = Student(model).to(device)
    student.text_encoder.requires_grad_(train_text)
    padding = replace_attention(student.transformer, device)
    average = {k: v.clone() for k, v in student.state_dict().items()}
    if compiled:
        # One graph per size.
        student.transformer.compile_repeated_blocks(dynamic=False)
    empty = empty_caption(model).to(device)
    optimizers = create_optimizers(student, lr)
    start, losses = time.time(), Smoothed(0.98)
    for step in tqdm(range(steps), desc="dit"):
        done = max(step / steps, (time.time() - start) / (60 * minutes))
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = lr * lr_factor(step, done)
        size = str(rng.choice(list(SIZES), p=shares / shares.sum()))
        opening = rng.uniform() < opening_share
        padding.set_padding(int(rng.choice(PROMPT_LENGTHS)) - (TEXT_TOKENS - 1))
        latent, tokens, labels = (x.to(device) for x in clips[size].batch(opening))
        tokens[torch.rand(len(tokens)) < EMPTY_CAPTIONS] = empty
        sigma = noise_levels(len(tokens), noise_shift or NOISE_SHIFT[size]).to(device)
        with torch.autocast(device, torch.bfloat16):
            loss, read = student(latent.float(), tokens, labels, sigma)
        optimize(student, optimizers, loss + READ_WEIGHT * read)
        update_average(average, student, decay=min(0.998, (step + 1) / (step + 20)))
        name = f"{size} opening" if opening else size
        losses.add(name, loss.item())
        losses.add(f"{name} read", read.item())
        if step % 50 == 49:
            figures = {"step": step + 1, "seconds": time.time() - start, **losses.values}
            log_line(out / "dit.jsonl", figures)
        if step % 500 == 499 or step == steps - 1 or done >= 1:
            student.save(out, average)
        if done >= 1:
            break


def empty_caption(model: Path) -> Tensor:
    """Return the tokens of an empty caption, int64 ``[24]``."""
    tokenizer = AutoTokenizer.from_pretrained(model / "tokenizer")
    return torch.tensor(tokenizer("", padding="max_length", max_length=TEXT_TOKENS)["input_ids"])


def optimize(student: Student, optimizers: Sequence[torch.optim.Optimizer], loss: Tensor) -> None:
    """Take one step of all optimizers."""
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@main.command("export")
@click.option("--model", type=click.Path(path_type=Path), default=tiny_world_path())
@click.option("--trained", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def export(model: Path, trained: Path, out: Path) -> None:
    """Save a whole pipeline in bfloat16, with the components in TRAINED and all others from MODEL."""
    components = {}
    for name, model_class in (
        ("vae", AutoencoderKLWan),
        ("transformer", WanTransformer3DModel),
        ("text_encoder", UMT5EncoderModel),
    ):
        folder = trained if (trained / name).is_dir() else model
        components[name] = model_class.from_pretrained(folder / name, dtype=torch.bfloat16)
    pipe = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(model / "tokenizer"),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(model / "scheduler"),
        **components,
    )
    pipe.save_pretrained(out, max_shard_size="10MB")
    # The configs of a public folder must not name local paths.
    for path in out.rglob("*config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
