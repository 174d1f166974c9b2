"""Whole models whose linear layers stay in few bits: rounded here, or as a GGUF file has them.

Shapes: C columns (inputs of a layer), D rows (its outputs), G blocks of 32 in a row.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from minillm.adapt.parts import find_parts
from minillm.adapt.quant import Format, Quantized, pack, quantize
from minillm.adapt.quant_linear import QuantLinear
from minillm.data import assets
from minillm.data.tokenizer import Tokenizer
from minillm.model.families import FAMILIES
from minillm.model.gguf import BLOCK, GGUF
from minillm.model.gguf_llama import gguf_config, gguf_name, half_split
from minillm.model.layouts import Row
from minillm.model.transformer import Transformer

Q4_1 = 3  # GGUF's number for blocks of a scale, a minimum and 32 codes of 4 bits
Q4_1_FORMAT = Format("affine", 4, BLOCK)


def quantize_linears(model: nn.Module, format: Format, targets: Iterable[str]) -> None:
    """Replace the named linear layers by quantised ones, in place.

    Args:
        targets: whole layers, such as "attention.qkv", "mlp.down" (see `find_parts`).

    Raises:
        ValueError: a name that fits nothing, a part of a fused layer, or a layer that does not fit
            the format; the model is then unchanged.
    """
    replaced = {}
    for name, part in find_parts(model, targets).items():
        if name != part.layer:
            raise ValueError(f"{name} is a part of {part.layer}; only whole layers are quantised")
        layer = model.get_submodule(name)
        replaced[name] = QuantLinear(quantize(layer.weight, format), layer.bias)
    for name, layer in replaced.items():
        model.set_submodule(name, layer)


@torch.no_grad()
def dequantize_linears(model: nn.Module) -> None:
    """Replace all quantised layers by plain float32 ones of the same weights, in place.

    Also under adapters, which can then be merged.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(layer.weight, requires_grad=False)
            plain.bias = None if layer.bias is None else nn.Parameter(layer.bias, False)
            model.set_submodule(name, plain)


def packed_gguf(file: GGUF) -> Transformer:
    """The model of a Llama-family GGUF file with its 4-bit layers as they are stored.

    Layers whose tensors are all Q4_1 become `QuantLinear`, with their codes, scales and minima;
    the embedding and the norms are float32. Same logits as `hf.from_gguf`, a third of the memory.

    Raises:
        ValueError: another architecture, or a damaged file.
    """
    config = gguf_config(file)
    with torch.device("meta"):
        model = Transformer(config)
    n_heads = {"attn_q.weight": config.n_heads, "attn_k.weight": config.n_kv_heads}
    weights = {}
    for row in FAMILIES["llama"].table(config):
        names = [gguf_name(name) for name in row.theirs]
        layer = row.ours.removesuffix(".weight")
        if all(file.kind(name) == Q4_1 for name in names):
            parts = [q4_1_matrix(file, name, n_heads) for name in names]
            quantized = Quantized(
                *(torch.cat(same) for same in zip(*parts, strict=True)), Q4_1_FORMAT
            )
            model.set_submodule(layer, QuantLinear(quantized))
        else:
            weights[row.ours] = _plain(file, row, n_heads)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    return model.requires_grad_(False)


def q4_1_matrix(file: GGUF, name: str, n_heads: dict[str, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 (D, C / 2), scales and minima float16 (D, G) of a Q4_1 matrix.

    Args:
        n_heads: end of a name → heads whose rows the file holds interleaved.
    """
    n_rows = file.shape(name)[0]
    blocks = file.blocks(name)  # scale, minimum, 16 bytes: low halves first, then all high ones
    codes = np.concatenate((blocks[:, 4:] & 15, blocks[:, 4:] >> 4), axis=1)
    scales, minima = (blocks[:, i : i + 2].copy().view(np.float16) for i in (0, 2))
    parts = [torch.from_numpy(x.reshape(n_rows, -1)) for x in (codes, scales, minima)]
    for ending, n in n_heads.items():
        if name.endswith(ending):
            parts = [half_split(part, n) for part in parts]
    return pack(parts[0]), parts[1], parts[2]


def _plain(file: GGUF, row: Row, n_heads: dict[str, int]) -> Tensor:
    """A tensor of ours in float32, from tensors of any storage type."""
    tensors = []
    for name in map(gguf_name, row.theirs):
        tensor = file.tensor(name)
        for ending, n in n_heads.items():
            if name.endswith(ending):
                tensor = half_split(tensor, n)
        tensors.append(tensor)
    return row.layout.pack(tensors)


def packed_smollm2() -> tuple[Transformer, Tokenizer]:
    """SmolLM2-135M-Instruct with its matrices in the 4 bits in which it is published."""
    file = GGUF(assets.path("smollm2"))
    return packed_gguf(file), Tokenizer.from_gguf(file.metadata)


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all weights and codes, shared ones counted once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.nbytes for t in tensors.values())
