"""Train the bundled tiny world: ``vae``, then ``latents``, then ``dit``, then ``gate``; see
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoTokenizer, UMT5EncoderModel

from dit_accel_assets import tiny_world_path
from dit_accel_assets.world import SIZES, caption, path_of, render, scenes

LATENT_NOISE = (
    0.1  # stands in for sampling the posterior: latents stay smooth, their scale stays free
)

TEXT_TOKENS = 24  # the longest caption has 21 with its end mark; the rest is padding
PROMPT_LENGTHS = (32, 128, 226, 512)  # max_sequence_length of pipeline calls; 512 is the default
SHARD = 100
BATCH = {"smoke": 16, "study": 4, "show": 2}
NOISE_SHIFT = {
    "smoke": 2.0,
    "study": 2.5,
    "show": 3.0,
}  # more tokens need more noise to hide the same content


def falling(step: int, steps: int, warmup: int = 50) -> float:
    """Learning-rate factor: a short rise, then a straight fall to zero."""
    return min((step + 1) / warmup, 1 - step / steps)


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
            group["lr"] = lr * falling(step, steps)
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
    """Render clips, encode them, and keep latents and caption tokens as safetensors shards."""
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
        if path.exists():
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
        save_file({"latents": torch.cat(latents).contiguous(), "tokens": tokens}, temporary)
        temporary.replace(path)


class PaddingBias(transformer_wan.WanAttnProcessor):
    """Cross attention that counts the last text token ``padding`` times.

    WanPipeline pads a prompt with zeros to ``max_sequence_length`` and attends to them; n equal
    keys are one key whose logit is raised by ln n, so training with one pad token and this bias is
    exact at any padding.
    """

    def __init__(self) -> None:
        super().__init__()
        self.padding = 1

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None
    ):
        bias = hidden_states.new_zeros(1, 1, 1, TEXT_TOKENS)
        bias[..., -1] = math.log(self.padding)
        return super().__call__(attn, hidden_states, encoder_hidden_states, bias, rotary_emb)


def matmul_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    backend: str | None = None,
    parallel_config: None = None,
) -> Tensor:
    """Attention of ``[B, S, H, D]`` by plain products: on CPU in bfloat16 a third of SDPA's time in
    training.
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores + attn_mask
    return (scores.softmax(-1) @ value).transpose(1, 2)


def load_shards(out: Path, size: str) -> dict[str, Tensor]:
    files = [load_file(p) for p in sorted((out / "latents" / size).glob("*.safetensors"))]
    return {k: torch.cat([f[k] for f in files]) for k in files[0]} if files else {}


class Student(nn.Module):
    """Text encoder and transformer, trained together on the flow-matching loss."""

    def __init__(self, model: Path) -> None:
        super().__init__()
        self.text_encoder = UMT5EncoderModel.from_pretrained(
            model / "text_encoder", dtype=torch.float32
        )
        self.transformer = WanTransformer3DModel.from_pretrained(
            model / "transformer", dtype=torch.float32
        )

    def forward(self, latent: Tensor, tokens: Tensor, sigma: Tensor) -> Tensor:
        """Mean squared error of the predicted velocity ``noise - latent`` at noise level sigma,
        ``[B]``.
        """
        mask = (tokens != 0).long()
        text = self.text_encoder(tokens, mask).last_hidden_state * mask[..., None]
        noise = torch.randn_like(latent)
        level = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1 - level) * latent + level * noise
        velocity = self.transformer(noisy, sigma * 1000, text, return_dict=False)[0]
        return (velocity.float() - (noise - latent)).square().mean()

    def save(self, out: Path, average: dict[str, Tensor] | None = None) -> None:
        own = {k: v.clone() for k, v in self.state_dict().items()}
        if average is not None:
            self.load_state_dict(average)
        self.text_encoder.save_pretrained(out / "text_encoder")
        self.transformer.save_pretrained(out / "transformer")
        self.load_state_dict(own)


def optimizers(student: Student, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer blocks, AdamW for everything else."""
    matrices = [p for p in student.transformer.blocks.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in student.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def noise_levels(count: int, shift: float) -> Tensor:
    """Logit-normal times, shifted towards noise as the scheduler's ``shift`` does."""
    sigma = torch.randn(count).sigmoid()
    return shift * sigma / (1 + (shift - 1) * sigma)


@main.command("dit")
@click.option("--model", type=click.Path(path_type=Path), default=tiny_world_path())
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--steps", default=4000)
@click.option("--lr", default=1e-3)
@click.option("--study-share", default=0.08)
@click.option("--show-share", default=0.03)
@click.option("--seed", default=0)
@click.option("--device", default="cpu")
@click.option("--compile/--eager", "compiled", default=True)
def train_dit(
    model: Path,
    out: Path,
    steps: int,
    lr: float,
    study_share: float,
    show_share: float,
    seed: int,
    device: str,
    compiled: bool,
) -> None:
    """Train transformer and text encoder on the encoded clips."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    data = {size: load_shards(out, size) for size in SIZES}
    shares = np.array([1 - study_share - show_share, study_share, show_share])
    shares = shares * [bool(data[size]) for size in SIZES]
    empty = AutoTokenizer.from_pretrained(model / "tokenizer")(
        "", padding="max_length", max_length=TEXT_TOKENS
    )
    student = Student(model).to(device)
    text_attention = PaddingBias()
    for block in student.transformer.blocks:
        block.attn2.set_processor(text_attention)
    average = {k: v.clone() for k, v in student.state_dict().items()}
    if device == "cpu":
        transformer_wan.dispatch_attention_fn = matmul_attention
    if compiled:
        student.transformer.compile_repeated_blocks()
    both = optimizers(student, lr)
    start, smooth, epoch = time.time(), {}, {size: iter(()) for size in SIZES}
    for step in tqdm(range(steps), desc="dit"):
        for optimizer in both:
            optimizer.param_groups[0]["lr"] = lr * falling(step, steps)
        size = str(rng.choice(list(SIZES), p=shares / shares.sum()))
        text_attention.padding = int(rng.choice(PROMPT_LENGTHS)) - (TEXT_TOKENS - 1)
        index = next(epoch[size], None)
        if index is None:
            data[size] = load_shards(out, size)  # shards that were encoded meanwhile join
            order = torch.from_numpy(rng.permutation(len(data[size]["tokens"])))
            epoch[size] = iter(order.split(BATCH[size])[:-1])
            index = next(epoch[size])
        latent, tokens = (data[size][k][index].to(device) for k in ("latents", "tokens"))
        tokens[torch.rand(len(tokens)) < 0.1] = torch.tensor(empty["input_ids"], device=device)
        sigma = noise_levels(len(tokens), NOISE_SHIFT[size]).to(device)
        with torch.autocast(device, torch.bfloat16):
            loss = student(latent.float(), tokens, sigma)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(0.998, (step + 1) / (step + 20))
        with torch.no_grad():
            for name, value in student.state_dict().items():
                average[name].lerp_(value, 1 - decay)
        smooth[size] = 0.98 * smooth.get(size, loss.item()) + 0.02 * loss.item()
        if step % 50 == 49:
            log_line(
                out / "dit.jsonl", {"step": step + 1, "seconds": time.time() - start, **smooth}
            )
        if step % 500 == 499 or step == steps - 1:
            student.save(out, average)


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
