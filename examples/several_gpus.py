"""Split one clip among GPUs with diffusers' Ulysses attention: `torchrun --nproc-per-node 2 examples/several_gpus.py`.

Each GPU gets a part of the heads, so their number must be a multiple of the number of GPUs. Wan 2.1 1.3B has 12.
"""

import torch
from diffusers import ContextParallelConfig, WanPipeline
from diffusers.utils import export_to_video
from torch import distributed

import dit_accel

distributed.init_process_group()
rank, count = distributed.get_rank(), distributed.get_world_size()
device = f"cuda:{rank}"
torch.accelerator.set_device_index(rank)
model = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
pipe = WanPipeline.from_pretrained(model, dtype=torch.bfloat16).to(device)
pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=count))
pipe.enable_sparse_attention(dit_accel.SVGEar(density=0.15))
noise = torch.Generator().manual_seed(0)  # the same in every process
size = {"height": 480, "width": 832, "num_frames": 81}
video = pipe("a red fox in the snow", generator=noise, **size).frames[0]
if rank == 0:
    export_to_video(video, "fox.mp4", fps=16)
    print(pipe.attention_report())
distributed.destroy_process_group()
