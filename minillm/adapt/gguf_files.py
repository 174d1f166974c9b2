"""Write a model as one GGUF file in few bits: what llama.cpp, and programs built on it, run.

Matrices become Q8_0 (blocks of 32 weights with a scale, 8.5 bits a weight) or Q4_1 (with a minimum,
5 bits), embeddings Q8_0, vectors stay float32. Source: the GGUF specification of the ggml project.

Shapes: D rows (outputs of a layer), C columns (inputs), N blocks of a matrix.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from minillm.adapt.quant import Format, quantize, unpack
from minillm.data.tokenizer import Tokenizer
from minillm.data.tokenizer_files import gguf_metadata
from minillm.model.config import ModelConfig
from minillm.model.families import FAMILIES
from minillm.model.gguf import ARRAY, BLOCK, GGUF, STRING
from minillm.model.gguf_llama import gguf_config, gguf_name, interleaved
from minillm.model.hf import unpack as published
from minillm.model.transformer import Transformer

F32, Q4_1, Q8_0 = 0, 3, 8  # GGUF's numbers of the storage types written here
ALIGNMENT = 32


def save_gguf(
    model: Transformer,
    path: str | Path,
    tokenizer: Tokenizer,
    bits: int = 8,
    chat_template: str | None = None,
) -> None:
    """Write a Llama-family model and its tokenizer into one file, whole or not at all.

    `hf.from_pretrained` reads it back, and `packed_gguf` what is in 4 bits without unpacking.

    Args:
        model: plain layers in float32: merge adapters, dequantise quantised layers first.
        bits: of the matrices, 8 or 4. A fine-tuned model whose base came in 4 bits needs 8: what
            adapters learn lies between the levels, and rounding to the same 4 bits again takes
            nearly all of it away.
        chat_template: how programs that chat write a conversation (`Template.jinja`).

    Raises:
        ValueError: other bits, a model that the file cannot express, a row that is no multiple of
            32, or a tokenizer whose way to cut text has no name in GGUF.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits={bits}: expected 4 or 8")
    path = Path(path)
    about = llama_metadata(model.config) | gguf_metadata(tokenizer, model.config.vocab_size)
    if chat_template is not None:
        about["tokenizer.chat_template"] = chat_template
    tensors = [(name, *encode(name, w, bits)) for name, w in gguf_tensors(model).items()]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write_gguf(file, about, tensors)
        back = gguf_config(GGUF(temporary))
        lost = differences(model.config, back)
        if lost:
            raise ValueError(f"a GGUF file of a Llama cannot express this model: {'; '.join(lost)}")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def gguf_tensors(model: Transformer) -> dict[str, Tensor]:
    """The weights as GGUF names and orders them."""
    config, tensors = model.config, {}
    n_heads = {"attn_q.weight": config.n_heads, "attn_k.weight": config.n_kv_heads}
    for name, weight in published(model, list(FAMILIES["llama"].table(config))).items():
        renamed = gguf_name(name)
        heads = n_heads.get(renamed.partition(".")[2].partition(".")[2])
        tensors[renamed] = interleaved(weight, heads) if heads else weight
    return tensors


def encode(name: str, weight: Tensor, bits: int) -> tuple[tuple[int, ...], int, bytes]:
    """Shape, storage type and bytes of a tensor."""
    weight = weight.detach().float().cpu()
    shape = tuple(weight.shape)
    if weight.dim() == 1:
        return shape, F32, weight.numpy().tobytes()
    if shape[-1] % BLOCK:
        raise ValueError(f"{name} has rows of {shape[-1]}: expected a multiple of {BLOCK}")
    if bits == 8 or name in ("token_embd.weight", "output.weight"):
        return shape, Q8_0, q8_0(weight)
    return shape, Q4_1, q4_1(weight)


def q4_1(weight: Tensor) -> bytes:
    """Blocks of a scale, a minimum (both float16) and 16 bytes: low halves first, then high."""
    rounded = quantize(weight, Format("affine", 4, BLOCK))
    codes = unpack(rounded.codes).view(-1, 2, BLOCK // 2)
    packed = (codes[:, 0] | codes[:, 1] << 4).numpy()
    return _blocks(rounded.scales, rounded.offsets, packed=packed)


def q8_0(weight: Tensor) -> bytes:
    """Blocks of a scale (float16) and 32 signed bytes."""
    rounded = quantize(weight, Format("absmax", 8, BLOCK))
    signed = (rounded.codes.short() - 128).to(torch.int8).view(-1, BLOCK).numpy()
    return _blocks(rounded.scales, packed=signed.view(np.uint8))


def _blocks(*numbers: Tensor, packed: np.ndarray) -> bytes:
    """Side by side, block by block: float16 (N, 1) of each, then uint8 (N, bytes)."""
    columns = [x.half().view(-1, 1).numpy().view(np.uint8) for x in numbers]
    return np.concatenate([*columns, packed], axis=1).tobytes()


def llama_metadata(config: ModelConfig) -> dict[str, object]:
    """What a GGUF file says about the shape of a Llama."""
    sizes = {
        "block_count": config.n_layers,
        "context_length": config.max_length,
        "embedding_length": config.d_model,
        "feed_forward_length": config.d_ff,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope.base),
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "vocab_size": config.vocab_size,
    }
    return {"general.architecture": "llama"} | {f"llama.{k}": v for k, v in sizes.items()}


def differences(ours: ModelConfig, back: ModelConfig) -> list[str]:
    """The fields that came back as something else; GGUF keeps fractions in 32 bits."""
    a, b = ours.to_dict(), back.to_dict()
    return [
        f"{name}={a[name]!r} would come back as {b[name]!r}"
        for name in a
        if not same(a[name], b[name])
    ]


def same(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, float | int):
        return math.isclose(a, b, rel_tol=1e-6)
    return a == b


# The container ----------------------------------------------------------------------------------


def write_gguf(
    file: BinaryIO, about: dict[str, object], tensors: list[tuple[str, tuple[int, ...], int, bytes]]
) -> None:
    """Header, metadata, table of tensors, then their data, each at a multiple of 32 bytes."""
    file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(about)))
    for key, value in about.items():
        kind, data = _value(value)
        file.write(_string(key) + struct.pack("<I", kind) + data)
    offset = 0
    for name, shape, kind, data in tensors:
        innermost_first = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        file.write(_string(name) + struct.pack("<I", len(shape)) + innermost_first)
        file.write(struct.pack("<IQ", kind, offset))
        offset += len(data) + -len(data) % ALIGNMENT
    file.write(bytes(-file.tell() % ALIGNMENT))
    for *_, data in tensors:
        file.write(data + bytes(-len(data) % ALIGNMENT))


def _value(value: object) -> tuple[int, bytes]:
    """The number of a value's type, and its bytes."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return STRING, _string(value)
    assert isinstance(value, list) and value, value
    items = [_value(item) for item in value]
    return ARRAY, struct.pack("<IQ", items[0][0], len(items)) + b"".join(b for _, b in items)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
