"""What tests of several rooms share."""

import torch
from torch import nn

from minillm.data.bpe import GPT2_PATTERN, GPT4_PATTERN, QWEN_PATTERN, SMOLLM_PATTERN

PATTERNS = {  # how tokenizers cut texts into pieces
    "gpt2": GPT2_PATTERN,
    "gpt4": GPT4_PATTERN,
    "qwen": QWEN_PATTERN,
    "smollm": SMOLLM_PATTERN,
    "gaps": r"[a-z]+",
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomised(module: nn.Module, seed: int = 1, scale: float = 0.4, mean: float = 0.0):
    """The module with every parameter random: norms of 1 and biases of 0 would hide mistakes."""
    generator = rng(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator) + mean)
    return module
