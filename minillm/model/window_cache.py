"""A cache that forgets what a sliding window no longer sees (Jiang et al. 2023, Mistral 7B, §2).

Shapes: B batch, T new tokens, S cached tokens, K key/value heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.model.cache import KVCache
from minillm.model.config import ModelConfig


class WindowCache(KVCache):
    """Keys and values of about the last ``window`` tokens; the bytes stop growing with the text.

    A drop-in for `KVCache`: ``generate(model, prompts, cache_type=WindowCache, …)``. Up to two
    windows are held, so that the oldest are dropped once in a window of steps and not at each.
    All rows drop equally many tokens: rows of very different lengths keep more.

    Args:
        max_length: how long the texts may get; no room for so many is made.

    Raises:
        ValueError: a layer of the model sees farther than a window, or its mask is not causal.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        if config.window is None or config.global_layers or config.mask != "causal":
            raise ValueError(
                f"window={config.window}, global_layers={config.global_layers}, mask="
                f"{config.mask!r}: a WindowCache is for a causal model with a window in every "
                "layer; use KVCache"
            )
        self.window, self.limit = config.window, max_length
        super().__init__(config, batch_size, min(max_length, 2 * config.window), device, dtype)

    def reach(self, n_new: int) -> int:
        """Cached positions a pass over ``n_new`` tokens can see; makes room for a long prompt."""
        reach = self._longest + n_new
        if self.dropped + reach > self.limit:
            raise ValueError(
                f"the cache was built for {self.limit} tokens a row and {self.dropped + reach} are "
                "needed; build it with a larger max_length"
            )
        if reach > self.max_length:
            missing = max(reach, 2 * self.window) - self.max_length
            self.keys, self.values = (
                torch.cat((room, room.new_zeros(*room.shape[:3], missing, room.shape[4])), dim=3)
                for room in (self.keys, self.values)
            )
        return reach

    def positions(self, n_new: int) -> Tensor:
        """Positions in the text, dropped tokens counted: (T,) or (B, T)."""
        return super().positions(n_new) + self.dropped

    def advance(self, n: int | Tensor | list[int]) -> None:
        """Count the last ``n`` tokens as real, and drop those before every row's window."""
        super().advance(n)
        unseen = self._shortest - (self.window - 1)  # the next token sees itself and the rest
        if unseen < self.window:
            return
        held = slice(unseen, self._longest)
        self.keys, self.values = (room[:, :, :, held].clone() for room in (self.keys, self.values))
        self._count([length - unseen for length in self._lengths])
        self.dropped += unseen

    def rewind(self, n: int) -> None:
        """Forget the last ``n`` tokens of every row.

        Raises:
            ValueError: what the token before them sees has been dropped, or a row has fewer.
        """
        if self.dropped and n > 0:
            raise ValueError("a WindowCache cannot go back: older tokens are dropped; use KVCache")
        super().rewind(n)
