"""The KV cache: keys and values of the tokens already read, so that they are computed once.

Shapes: B batch, T new tokens, S cached tokens, K key/value heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.model.config import ModelConfig


class KVCache:
    """Room for ``max_length`` tokens in each of ``batch_size`` rows, filled row by row.

    Latent attention keeps one short key a token and no value (see `latent`); nothing here changes.

    ``dropped`` counts the tokens at the beginning of the text that are no longer held; here it
    stays 0 (see `window_cache`).

    Rows may have different lengths. New tokens are written behind each row's own length and count
    only once ``advance`` says how many of them are real, so right-padding is simply overwritten::

        logits = model(prompts, cache=cache)      # prompts (B, T), right-padded
        cache.advance(prompt_lengths)
        logits = model(next_tokens, cache=cache)  # (B, 1)
        cache.advance(1)
    """

    dropped = 0

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        if batch_size < 1 or max_length < 1:
            raise ValueError(
                f"batch_size={batch_size}, max_length={max_length}: both must be at least 1"
            )
        n_heads, key_width, value_width = config.cache_shape
        room = (config.n_layers, batch_size, n_heads, max_length)
        self.keys = torch.zeros(*room, key_width, device=device, dtype=dtype)
        self.values = torch.zeros(*room, value_width, device=device, dtype=dtype)
        self._count([0] * batch_size)

    def _count(self, lengths: list[int]) -> None:
        """So many tokens of each row are real, from now on.

        The lengths live on the host, so that nobody waits for a GPU; and every layer asks for the
        longest, so that it is looked up once.
        """
        self._lengths = lengths
        self._shortest, self._longest = min(lengths, default=0), max(lengths, default=0)
        self._places: tuple[Tensor, Tensor] | None = None

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: how many tokens of each row count."""
        return torch.tensor(self._lengths, device=self.keys.device)

    @property
    def batch_size(self) -> int:
        return len(self._lengths)

    @property
    def max_length(self) -> int:
        return self.keys.shape[3]

    @property
    def is_ragged(self) -> bool:
        return self._shortest != self._longest

    def reach(self, n_new: int) -> int:
        """How many cached positions a forward pass over ``n_new`` tokens can see.

        Raises:
            ValueError: the cache is too short for them.
        """
        reach = self._longest + n_new
        if reach > self.max_length:
            raise ValueError(
                f"the cache holds {self.max_length} tokens a row and {reach} are needed; "
                "build it with a larger max_length"
            )
        return reach

    def positions(self, n_new: int) -> Tensor:
        """Positions of the new tokens: (T,) while all rows are equally long, else (B, T)."""
        if self.is_ragged:
            return self.places(n_new)[1]
        return self._lengths[0] + torch.arange(n_new, device=self.keys.device)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored, room that is still empty included."""
        return self.keys.nbytes + self.values.nbytes

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, K, T, D) of one layer and return all it has: two of (B, K, S, D)."""
        return self.write(self.keys[layer], k), self.write(self.values[layer], v)

    def write(self, room: Tensor, new: Tensor) -> Tensor:
        """Put ``new`` (B, K, T, D) behind each row's tokens in ``room`` (B, K, max_length, D).

        Returns:
            (B, K, S, D), a view: what is now in the room, up to the end of the longest row.
        """
        n_new, reach = new.shape[2], self.reach(new.shape[2])
        if self.is_ragged:
            rows, positions = self.places(n_new)
            room[rows, :, positions] = new.transpose(1, 2).to(room.dtype)
        else:
            room.narrow(2, reach - n_new, n_new).copy_(new)
        return room.narrow(2, 0, reach)

    def places(self, n_new: int) -> tuple[Tensor, Tensor]:
        """Rows (B, 1) and positions (B, T) of new tokens, made once a step for all layers."""
        if self._places is None or self._places[1].shape[1] != n_new:
            rows = torch.arange(self.batch_size, device=self.keys.device)[:, None]
            self._places = rows, self.lengths[:, None] + torch.arange(n_new, device=rows.device)
        return self._places

    def advance(self, n: int | Tensor | list[int]) -> None:
        """Count the last ``n`` written tokens as real: one number, or one for each row.

        Raises:
            ValueError: a count for each row is missing, is negative, or exceeds the cache.
        """
        counts = [n] * self.batch_size if isinstance(n, int) else list(map(int, n))
        if len(counts) != self.batch_size or min(counts) < 0:
            raise ValueError(
                f"advance got {counts}: expected {self.batch_size} counts of at least 0"
            )
        lengths = [old + new for old, new in zip(self._lengths, counts, strict=True)]
        if max(lengths) > self.max_length:
            raise ValueError(f"row lengths {lengths} exceed max_length={self.max_length}")
        self._count(lengths)

    def rewind(self, n: int) -> None:
        """Forget the last ``n`` tokens of every row; what comes next is written over them.

        Raises:
            ValueError: a row has fewer tokens.
        """
        if not 0 <= n <= self._shortest:
            raise ValueError(f"rewind({n}): the rows hold {self._lengths} tokens")
        self._count([length - n for length in self._lengths])

    def keep(self, rows: Tensor) -> None:
        """Drop finished rows: keep those named by indices (B',) or by a boolean mask (B,).

        An index may occur twice. A row that stays where it is costs nothing (see `close_ranks`),
        unless the batch grows.
        """
        rows = torch.as_tensor(rows, device=self.keys.device)
        if rows.dtype == torch.bool:
            rows = rows.nonzero().flatten()
        sources = rows.tolist()
        with torch.inference_mode(self.keys.is_inference()):  # or it may not write in place
            self.keys, self.values = (
                kept_rows(room, sources, self._longest) for room in (self.keys, self.values)
            )
        self._count([self._lengths[i] for i in sources])


def kept_rows(room: Tensor, sources: list[int], held: int) -> Tensor:
    """Rows of a room (L, B, K, max_length, D) whose first ``held`` tokens are filled: (L, B', …).

    Those that move are written over those that go, in place; a batch that grows is copied.
    """
    if len(sources) > room.shape[1]:
        copies = room.new_zeros(len(room), len(sources), *room.shape[2:])
        copies[:, :, :, :held] = room[:, sources, :, :held]
        return copies
    moved = [to for to, source in enumerate(sources) if source != to]
    if moved:
        room[:, moved, :, :held] = room[:, [sources[to] for to in moved], :, :held]
    return room[:, : len(sources)]


def close_ranks(going: list[int]) -> list[int]:
    """Reorder the ascending rows that go on so that the last ones fill the gaps.

    [0, 2, 3, 5] → [0, 5, 2, 3]: three rows of a cache can stay where they are, and one moves.
    """
    order = list(range(len(going)))
    gaps = set(order).difference(going)
    movers = going[len(going) - len(gaps) :]
    for gap in sorted(gaps):
        order[gap] = movers.pop()
    return order
