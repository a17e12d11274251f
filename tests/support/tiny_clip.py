"""A tiny random CLIP with a vocabulary of five words, in the layout that ``save_pretrained`` writes."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
)

WIDTH = 8
"""Channels of its embeddings."""


def save_tiny_clip(folder: Path, seed: int = 0) -> tuple[CLIPModel, CLIPProcessor]:
    """Save a model and its processor into one folder, and return them."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": 10, "max_position_embeddings": 12}
    text |= {"eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(seed)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    words = {"<pad>": 0, "</s>": 1, "<s>": 2, "a": 3, "fox": 4, "depicts": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>"
    )
    size = {"height": 32, "width": 32}
    processor = CLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), fast)
    processor.save_pretrained(folder)
    return model, processor
