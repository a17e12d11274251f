"""Train the bundled tiny world: ``vae``, ``latents``, ``text``, ``dit``, ``export``; see
assets/README.md.

Every stage is seeded, logs to JSONL, checkpoints to safetensors and starts from the weights in
``--model`` (the committed folder by default) with a fresh optimizer. ``--out`` receives a whole
diffusers folder.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
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
from diffusers.models.transformers import transformer_wan
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoTokenizer, UMT5EncoderModel

from dit_accel_assets import tiny_world_path
from dit_accel_assets.world import SIZES, caption, path_of, render, scenes
from tiny_world_readers import TEXT_TOKENS, PhraseReader, phrase_batch, token_labels
from tiny_world_student import (
    READ_WEIGHT,
    Clips,
    PaddingBias,
    Student,
    matmul_attention,
    optimizers,
)

LATENT_NOISE = (
    0.1  # stands in for sampling the posterior: latents stay smooth, their scale stays free
)

PROMPT_LENGTHS = (32, 128, 226, 512)  # max_sequence_length of pipeline calls; 512 is the default
SHARD = 100
NOISE_SHIFT = {
    "smoke": 2.0,
    "study": 2.5,
    "show": 3.0,
}  # more tokens need more noise to hide the same content


# Attending to the word two places on takes biases of several units; Adam moves a number by about the
# learning rate a step.
BIAS, BIAS_PULL = "relative_attention_bias", 30.0


def falling(step: int, done: float, warmup: int = 50) -> float:
    """Learning-rate factor: a short rise, then a straight fall to zero as ``done`` goes to 1."""
    return min((step + 1) / warmup, max(0.0, 1 - done))


def log_line(path: Path, figures: Mapping[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(figures) + "\n")


def crop_around_object(rng: np.random.Generator, side: int, frames: int) -> np.ndarray:
    """A ``[frames, side, side, 3]`` piece of a random clip, four times in five centred on an
    object.
    """
    height, width, length = SIZES[rng.choice(list(SIZES))]
    scene = next(scenes(rng, [int(rng.integers(1, 3))], kept=False))
    start = int(rng.integers(0, length - frames + 1))
    x, y = rng.uniform(0, 1, 2)
    if rng.uniform() < 0.8:
        moment = np.array([(start + rng.uniform(0, frames)) / length])
        x, y = path_of(scene.things[-1], moment)[0] + rng.normal(0, 0.06, 2)
    top = int(np.clip(y * height - side / 2, 0, height - side))
    left = int(np.clip(x * width - side / 2, 0, width - side))
    window = (slice(start, start + frames), slice(top, top + side), slice(left, left + side))
    return render(scene, height, width, length, window)


def crop_batches(seed: int) -> Iterator[Tensor]:
    """Endless ``[B, 3, T, H, W]`` batches in [-1, 1]; lengths cover every path of Wan's causal
    feature cache.
    """
    rng = np.random.default_rng(seed)
    while True:
        side, batch = ((32, 16), (48, 8))[int(rng.integers(2))]
        frames = int(rng.choice([1, 5, 9, 13, 17, 17]))
        clips = np.stack([crop_around_object(rng, side, frames) for _ in range(batch)])
        yield torch.from_numpy(clips).permute(0, 4, 1, 2, 3) * 2 - 1


def convolutions_channels_last(model: nn.Module) -> None:
    """Lay 3-D convolution weights out channels-last: a fifth faster on CPU."""
    for parameter in model.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)


def reconstruction_loss(vae: AutoencoderKLWan, clip: Tensor) -> Tensor:
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
@click.option("--decoder-only", is_flag=True, help="Keep the encoder, and so all encoded clips.")
def train_vae(
    model: Path, out: Path, steps: int, lr: float, seed: int, device: str, decoder_only: bool
) -> None:
    """Fit AutoencoderKLWan to crops of clips of all sizes."""
    torch.manual_seed(seed)
    vae = AutoencoderKLWan.from_pretrained(model / "vae", dtype=torch.float32).to(device)
    if decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    convolutions_channels_last(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, weight_decay=1e-4, betas=(0.9, 0.98))
    batches, start, smooth = crop_batches(seed), time.time(), 0.0
    for step in tqdm(range(steps), desc="vae"):
        for group in optimizer.param_groups:
            group["lr"] = lr * falling(step, step / steps)
        clip = next(batches).to(device).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(device, torch.bfloat16):
            loss = reconstruction_loss(vae, clip)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
        if step % 100 == 99:
            log_line(
                out / "vae.jsonl",
                {"step": step + 1, "loss": smooth, "seconds": time.time() - start},
            )
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
    """Render clips, encode them, and keep latents, caption tokens and labels as safetensors shards."""
    vae = AutoencoderKLWan.from_pretrained(model / "vae", dtype=torch.float32).to(device)
    convolutions_channels_last(vae)
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
        drawn = list(scenes(rng, objects.tolist(), kept=False))
        texts = tokenizer([caption(s) for s in drawn], padding="max_length", max_length=TEXT_TOKENS)
        latents = []
        for scene in drawn:
            clip = (
                torch.from_numpy(render(scene, *SIZES[size]))
                .to(device)[None]
                .permute(0, 4, 1, 2, 3)
            )
            clip = (clip * 2 - 1).contiguous(memory_format=torch.channels_last_3d)
            with torch.autocast(device, torch.bfloat16):
                latent = vae.encode(clip).latent_dist.mode()
            latents.append(((latent.float() - mean) / std).bfloat16().contiguous().cpu())
        temporary = path.with_suffix(".part")
        tokens = torch.tensor(texts["input_ids"])
        labels = torch.from_numpy(np.stack([token_labels(s, *SIZES[size]) for s in drawn]))
        shard_of = {"latents": torch.cat(latents).contiguous(), "tokens": tokens, "labels": labels}
        save_file(shard_of, temporary)
        temporary.replace(path)


@main.command("text")
@click.option("--model", type=click.Path(path_type=Path), default=tiny_world_path())
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--steps", default=3000)
@click.option("--lr", default=2e-3)
@click.option("--seed", default=0)
@click.option("--device", default="cpu")
def train_text(model: Path, out: Path, steps: int, lr: float, seed: int, device: str) -> None:
    """Teach the text encoder which words of a caption belong together."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = AutoTokenizer.from_pretrained(model / "tokenizer")
    encoder = UMT5EncoderModel.from_pretrained(model / "text_encoder", dtype=torch.float32)
    reader = PhraseReader(encoder).to(device)
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for n, p in reader.named_parameters() if (BIAS in n) == bias],
                "pull": pull,
            }
            for bias, pull in ((False, 1.0), (True, BIAS_PULL))
        ],
        weight_decay=0.0,
        betas=(0.9, 0.98),
    )
    smooth = 0.0
    for step in tqdm(range(steps), desc="text"):
        for group in optimizer.param_groups:
            group["lr"] = lr * group["pull"] * falling(step, step / steps)
        loss = reader(*(x.to(device) for x in phrase_batch(tokenizer, rng, 64)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        smooth = loss.item() if step == 0 else 0.95 * smooth + 0.05 * loss.item()
        if step % 100 == 99 or step == steps - 1:
            log_line(out / "text.jsonl", {"step": step + 1, "loss": smooth})
    encoder.save_pretrained(out / "text_encoder")


def noise_levels(count: int, shift: float) -> Tensor:
    """Logit-normal times, shifted towards noise as the scheduler's ``shift`` does."""
    sigma = torch.randn(count).sigmoid()
    return shift * sigma / (1 + (shift - 1) * sigma)


@main.command("dit")
@click.option("--model", type=click.Path(path_type=Path), default=tiny_world_path())
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--steps", default=4000)
@click.option("--minutes", default=math.inf, help="End by then, however many steps that were.")
@click.option("--lr", default=1e-3)
@click.option("--study-share", default=0.08)
@click.option("--show-share", default=0.03)
@click.option("--opening-share", default=0.3, help="Share of steps on first frames only.")
@click.option(
    "--orbit-copies",
    default=1,
    help="How often a clip with an object that moves in a circle comes in a round: its phase, shared by "
    "all frames, is the hardest thing to learn.",
)
@click.option("--noise-shift", type=float, help="Towards noise, for all sizes; else by size.")
@click.option(
    "--train-text",
    is_flag=True,
    help="Train the text encoder, too; it then forgets part of what `text` taught it.",
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
    empty = AutoTokenizer.from_pretrained(model / "tokenizer")(
        "", padding="max_length", max_length=TEXT_TOKENS
    )
    student = Student(model).to(device)
    student.text_encoder.requires_grad_(train_text)
    text_attention = PaddingBias(device)
    for block in student.transformer.blocks:
        block.attn2.set_processor(text_attention)
    average = {k: v.clone() for k, v in student.state_dict().items()}
    if device == "cpu":
        transformer_wan.dispatch_attention_fn = matmul_attention
    if compiled:
        student.transformer.compile_repeated_blocks(dynamic=False)  # one graph a size
    both = optimizers(student, lr)
    start, smooth = time.time(), {}
    for step in tqdm(range(steps), desc="dit"):
        done = max(step / steps, (time.time() - start) / (60 * minutes))
        for optimizer in both:
            optimizer.param_groups[0]["lr"] = lr * falling(step, done)
        size = str(rng.choice(list(SIZES), p=shares / shares.sum()))
        opening = rng.uniform() < opening_share
        text_attention.count(int(rng.choice(PROMPT_LENGTHS)) - (TEXT_TOKENS - 1))
        latent, tokens, labels = (x.to(device) for x in clips[size].batch(opening))
        tokens[torch.rand(len(tokens)) < 0.1] = torch.tensor(empty["input_ids"], device=device)
        sigma = noise_levels(len(tokens), noise_shift or NOISE_SHIFT[size]).to(device)
        with torch.autocast(device, torch.bfloat16):
            loss, read = student(latent.float(), tokens, labels, sigma)
        (loss + READ_WEIGHT * read).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(0.998, (step + 1) / (step + 20))
        with torch.no_grad():
            for name, value in student.state_dict().items():
                average[name].lerp_(value, 1 - decay)
        name = f"{size} opening" if opening else size
        for key, value in ((name, loss.item()), (f"{name} read", read.item())):
            smooth[key] = 0.98 * smooth.get(key, value) + 0.02 * value
        if step % 50 == 49:
            log_line(
                out / "dit.jsonl", {"step": step + 1, "seconds": time.time() - start, **smooth}
            )
        if step % 500 == 499 or step == steps - 1 or done >= 1:
            student.save(out, average)
        if done >= 1:
            break


@main.command("export")
@click.option("--model", type=click.Path(path_type=Path), default=tiny_world_path())
@click.option("--trained", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def export(model: Path, trained: Path, out: Path) -> None:
    """Put a whole pipeline folder together in bfloat16: parts found in TRAINED, the others from MODEL."""
    parts = {}
    for name, kind in (
        ("vae", AutoencoderKLWan),
        ("transformer", WanTransformer3DModel),
        ("text_encoder", UMT5EncoderModel),
    ):
        folder = trained if (trained / name).is_dir() else model
        parts[name] = kind.from_pretrained(folder / name, dtype=torch.bfloat16)
    pipe = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(model / "tokenizer"),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(model / "scheduler"),
        **parts,
    )
    pipe.save_pretrained(out, max_shard_size="10MB")
    for path in out.rglob("*config.json"):  # where it was trained is nobody's business
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
