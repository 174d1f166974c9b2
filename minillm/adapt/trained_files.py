"""What was learned, in a file of its own: the parameters that train, and nothing else.

For every method of this room. (LoRA and DoRA also have `lora_files`, the format of `peft`.) To
load, first prepare the model in the same way as for training::

    add_ia3(model)
    load_trained(model, "ia3.safetensors")
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from minillm.adapt.wrap import trainable
from minillm.model.transformer import check_shapes, shapes_of


def save_trained(model: nn.Module, path: str | Path) -> None:
    """Write the parameters that learn into one safetensors file, whole or not at all.

    Raises:
        ValueError: nothing learns.
    """
    learned = {name: p.detach().contiguous() for name, p in trainable(model).items()}
    if not learned:
        raise ValueError("no parameter of the model learns, so there is nothing to save")
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(learned | _places(model), temporary, metadata={"format": "pt"})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@torch.no_grad()
def load_trained(model: nn.Module, path: str | Path) -> None:
    """Fill the parameters that learn from a file that `save_trained` wrote.

    Raises:
        ValueError: no readable file, or tensors that are missing, surplus or of another shape
            (all are listed; the model is then unchanged).
    """
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} holds no readable tensors: {error}") from error
    wanted = trainable(model) | _places(model)
    check_shapes(shapes_of(wanted), shapes_of(stored))
    for name, tensor in wanted.items():
        tensor.copy_(stored[name])


def _places(model: nn.Module) -> dict[str, torch.Tensor]:
    """Where sparse updates sit: without it their values say nothing."""
    return {n: b for n, b in model.named_buffers() if n.endswith(".places")}
