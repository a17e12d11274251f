"""Make an image with FLUX.1.

An image of 2048 x 2048 has 16,384 tokens. Smaller images stay dense on a GPU, because sparse attention is slower there.
"""

import torch
from diffusers import FluxPipeline

import dit_accel

model = "black-forest-labs/FLUX.1-dev"
pipe = FluxPipeline.from_pretrained(model, dtype=torch.bfloat16).to("cuda")
pipe.enable_sparse_attention(dit_accel.SVGEar(density=0.25))
image = pipe("a red fox in the snow", height=2048, width=2048).images[0]
image.save("fox.png")
print(pipe.attention_report())
