"""A key/value cache in 8 bits: about a quarter of the memory of one in float32.

A long text, or many texts at once, fills more memory with keys and values than the weights take.
Every key and every value gets one scale, its largest entry over 127: a loud token or a loud head
then costs its neighbours nothing, and a token is rounded once, when it is read.

Shapes: B batch, T new tokens, S cached tokens, K key/value heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.infer.paged import BLOCK_SIZE, BlockPool, gather, scatter
from minillm.model.cache import KVCache
from minillm.model.config import ModelConfig


class Int8Cache(KVCache):
    """A `KVCache` that keeps codes of 8 bits, with a float32 scale for each head and position.

    So a head of size D takes D + 4 bytes of a token instead of 4 · D. The codes of one layer are
    turned back into numbers when that layer attends, and dropped again.

    Args:
        dtype: of the keys and values that `append` returns; the codes are int8 in any case.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(config, batch_size, max_length, device, torch.int8)
        self.dtype = dtype
        self.key_scales, self.value_scales = (
            torch.zeros(*codes.shape[:-1], 1, device=device) for codes in (self.keys, self.values)
        )

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales, room that is still empty included."""
        return super().nbytes + self.key_scales.nbytes + self.value_scales.nbytes

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Round and write k, v (B, K, T, D); return all that is stored: two of (B, K, S, D).

        The new tokens come back rounded too, so that a text gives the same results whether it is
        read at once or token by token.
        """
        keys = self.write_rounded(self.keys[layer], self.key_scales[layer], k)
        return keys, self.write_rounded(self.values[layer], self.value_scales[layer], v)

    def write_rounded(self, codes: Tensor, scales: Tensor, new: Tensor) -> Tensor:
        """Put ``new`` behind each row's tokens as codes and scales, and return all as numbers."""
        new_codes, new_scales = int8_heads(new)
        return (self.write(codes, new_codes) * self.write(scales, new_scales)).to(self.dtype)

    def keep(self, rows: Tensor) -> None:
        """Drop finished rows: keep those named by indices (B',) or by a boolean mask (B,)."""
        rows = torch.as_tensor(rows, device=self.keys.device)
        self.key_scales, self.value_scales = self.key_scales[:, rows], self.value_scales[:, rows]
        super().keep(rows)


class Int8Pool(BlockPool):
    """A `BlockPool` of 8-bit codes, each head of each token with a scale, as in `Int8Cache`.

    Args:
        dtype: of the keys and values that `read` returns; the codes are int8 in any case.
    """

    def __init__(
        self,
        config: ModelConfig,
        n_blocks: int,
        block_size: int = BLOCK_SIZE,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(config, n_blocks, block_size, device, torch.int8)
        self.dtype = dtype
        self.key_scales, self.value_scales = (
            torch.zeros(*codes.shape[:-1], 1, device=device) for codes in (self.keys, self.values)
        )
        self.rooms += [self.key_scales, self.value_scales]

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put k, v (B, K, T, D) into slots (B, T) as codes and scales."""
        for codes, scales, new in (
            (self.keys, self.key_scales, k),
            (self.values, self.value_scales, v),
        ):
            new_codes, new_scales = int8_heads(new)
            scatter(codes[layer], slots, new_codes)
            scatter(scales[layer], slots, new_scales)

    def read(self, layer: int, blocks: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The first ``length`` tokens in blocks (B, N): keys and values (B, K, S, D)."""
        codes = super().read(layer, blocks, length)
        scales = (gather(s[layer], blocks, length) for s in (self.key_scales, self.value_scales))
        keys, values = ((c * s).to(self.dtype) for c, s in zip(codes, scales, strict=True))
        return keys, values


def int8_heads(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 (…, D), −127 … 127, and scales float32 (…, 1), one for each vector of D."""
    x = x.float()
    # Latent attention caches no values: vectors of length 0, which have no largest entry.
    largest = x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(*x.shape[:-1], 1)
    scales = largest / 127
    return (x / scales.where(scales != 0, 1.0)).round().to(torch.int8), scales
