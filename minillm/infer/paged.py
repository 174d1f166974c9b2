"""A paged KV cache: rows keep keys and values in blocks, and rows that begin alike share them.

A contiguous cache sets aside room for the longest text a row might become. Here memory is cut into
blocks of 16 tokens. A row takes a block when it needs one, keeps a list of its blocks (its table)
and gives them back when it ends, so nothing is set aside. Two rows may list the same block: a
block is counted, copied before a row writes where another one reads, and free when nobody lists it.

A full block never changes. It stays findable, under a hash of its tokens *and of all before them*,
until its memory is needed for something else. A row that begins with the same tokens, such as the
same instructions, lists those blocks instead of computing them again.

Source: Kwon et al. 2023, *Efficient Memory Management for Large Language Model Serving with
PagedAttention*, §4. Their kernel attends block by block; plain PyTorch has none, so `read` gathers
a row's blocks first, which costs one copy of the context a layer and step.

Shapes: B rows, T new tokens, S cached tokens, N blocks of the longest row, K key/value heads,
D head size.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minillm.model.cache import KVCache
from minillm.model.config import ModelConfig

BLOCK_SIZE = 16  # tokens; smaller wastes less of the last block, larger needs fewer table entries


class OutOfBlocks(RuntimeError):
    """All blocks of a pool are in use."""


@dataclass
class BlockTable:
    """Where one row lies: token t is in block ``blocks[t // block_size]``.

    Attributes:
        blocks: numbers of blocks, in the order of the text.
        length: how many tokens count; the last block may have room for more.
        hashes: of the first blocks, those that `BlockPool.publish` has seen full.
    """

    blocks: list[int] = field(default_factory=list)
    length: int = 0
    hashes: list[bytes] = field(default_factory=list)


class BlockPool:
    """The memory of all rows: ``n_blocks`` blocks of ``block_size`` tokens, each counted.

    Attributes:
        rooms: the tensors that hold it, (n_layers, n_blocks, block_size, K, …) each.
        references: how many tables list each block.
    """

    def __init__(
        self,
        config: ModelConfig,
        n_blocks: int,
        block_size: int = BLOCK_SIZE,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        if n_blocks < 1 or block_size < 1:
            raise ValueError(
                f"n_blocks={n_blocks}, block_size={block_size}: both must be at least 1"
            )
        n_heads, key_width, value_width = config.cache_shape
        shape = (config.n_layers, n_blocks, block_size, n_heads)
        self.keys = torch.zeros(*shape, key_width, device=device, dtype=dtype)
        self.values = torch.zeros(*shape, value_width, device=device, dtype=dtype)
        self.rooms = [self.keys, self.values]
        self.n_blocks, self.block_size = n_blocks, block_size
        self.references = [0] * n_blocks
        self._free = OrderedDict.fromkeys(range(n_blocks))  # the next to be taken comes first
        self._found: dict[bytes, int] = {}  # hash → block
        self._hashes: dict[int, bytes] = {}  # block → hash

    @property
    def n_free(self) -> int:
        """Blocks that no table lists; their tokens may still be findable."""
        return len(self._free)

    @property
    def nbytes(self) -> int:
        return sum(room.nbytes for room in self.rooms)

    # Memory: what one layer writes and reads.

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put k, v (B, K, T, D) into slots (B, T); slot = block · block_size + place in it."""
        scatter(self.keys[layer], slots, k)
        scatter(self.values[layer], slots, v)

    def read(self, layer: int, blocks: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The first ``length`` tokens in blocks (B, N): keys and values (B, K, S, D)."""
        return gather(self.keys[layer], blocks, length), gather(self.values[layer], blocks, length)

    # Tables: which row has which block.

    def n_missing(self, table: BlockTable, n_new: int) -> int:
        """How many blocks more a row needs for ``n_new`` more tokens."""
        return -(-(table.length + n_new) // self.block_size) - len(table.blocks)

    def reserve(self, table: BlockTable, n_new: int) -> None:
        """Give a row room for ``n_new`` ≥ 1 more tokens, which nobody else reads.

        Raises:
            OutOfBlocks: none is left; the row keeps those it got.
        """
        last, begun = divmod(table.length, self.block_size)
        if begun:
            table.blocks[last] = self._own(table.blocks[last])
        while self.n_missing(table, n_new) > 0:
            table.blocks.append(self._take())

    def resize(self, table: BlockTable, length: int) -> None:
        """Let ``length`` tokens of a row count, and take back the blocks behind them."""
        table.length = length
        while self.n_missing(table, 0) < 0:
            self._release(table.blocks.pop())
        del table.hashes[length // self.block_size :]

    def fork(self, table: BlockTable) -> BlockTable:
        """A second row that goes on from where the first one stands, without a copy."""
        n_used = self.n_missing(BlockTable(), table.length)
        for block in table.blocks[:n_used]:
            self._share(block)
        return BlockTable(table.blocks[:n_used], table.length, list(table.hashes))

    # Prefixes: rows that begin alike.

    def publish(self, table: BlockTable, tokens: Sequence[int]) -> None:
        """Make the full blocks of a row findable; its text begins with ``tokens``."""
        size = self.block_size
        for i in range(len(table.hashes), table.length // size):
            before = table.hashes[-1] if i else b""
            key = block_hash(before, tokens[i * size : (i + 1) * size])
            table.hashes.append(key)
            if key not in self._found:  # or two rows computed the same at the same time
                self._found[key], self._hashes[table.blocks[i]] = table.blocks[i], key

    def find(self, tokens: Sequence[int]) -> BlockTable:
        """A row of all the blocks that ``tokens`` begins with and that are still there."""
        table, size = BlockTable(), self.block_size
        for start in range(0, len(tokens) - size + 1, size):
            before = table.hashes[-1] if start else b""
            key = block_hash(before, tokens[start : start + size])
            if key not in self._found:
                break
            self._share(self._found[key])
            table.blocks.append(self._found[key])
            table.hashes.append(key)
        table.length = len(table.blocks) * size
        return table

    # Blocks: the counting underneath.

    def _take(self) -> int:
        if not self._free:
            raise OutOfBlocks(f"all {self.n_blocks} blocks of {self.block_size} tokens are in use")
        block, _ = self._free.popitem(last=False)
        self._unpublish(block)
        self.references[block] = 1
        return block

    def _share(self, block: int) -> None:
        self.references[block] += 1
        self._free.pop(block, None)

    def _release(self, block: int) -> None:
        self.references[block] -= 1
        if self.references[block] == 0:
            self._free[block] = None
            # What nobody can find goes first; the rest in the order in which it was given back.
            self._free.move_to_end(block, last=block in self._hashes)

    def _own(self, block: int) -> int:
        """The block, or a copy of it if others read it too: copy on write."""
        if self.references[block] == 1:
            self._unpublish(block)
            return block
        copy = self._take()
        for room in self.rooms:
            room[:, copy] = room[:, block]
        self._release(block)
        return copy

    def _unpublish(self, block: int) -> None:
        if block in self._hashes:
            del self._found[self._hashes.pop(block)]


class PagedCache(KVCache):
    """Rows of a pool in the shape of a `KVCache`: what a model reads from and writes to.

    It holds no memory of its own and takes no time to make, so each step may put other rows
    together. Dropping a cache leaves its tables as they are.
    """

    def __init__(self, pool: BlockPool, tables: Sequence[BlockTable]):
        self.pool, self.keys, self.values = pool, pool.keys, pool.values
        self._hold(tables)

    def _hold(self, tables: Sequence[BlockTable]) -> None:
        self.tables = list(tables)
        self._count([table.length for table in tables])
        self._layout: tuple[Tensor, Tensor] | None = None

    @property
    def max_length(self) -> int:
        """What a row could hold if it had the pool for itself."""
        return self.pool.n_blocks * self.pool.block_size

    @property
    def nbytes(self) -> int:
        """Bytes of the whole pool."""
        return self.pool.nbytes

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, K, T, D) of one layer and return all it has: two of (B, K, S, D).

        Raises:
            OutOfBlocks: the pool has too few free blocks for the new tokens.
        """
        n_new = k.shape[2]
        if self._layout is None or self._layout[0].shape[1] != n_new:
            self._layout = self._lay_out(n_new)
        slots, blocks = self._layout
        self.pool.write(layer, slots, k, v)
        return self.pool.read(layer, blocks, self.reach(n_new))

    def _lay_out(self, n_new: int) -> tuple[Tensor, Tensor]:
        """Slots (B, T) of the new tokens and blocks (B, N) of all, once a pass for all layers."""
        for table in self.tables:
            self.pool.reserve(table, n_new)
        longest = max(len(table.blocks) for table in self.tables)
        # A short row repeats its last block; the mask hides what lies behind its end.
        padded = [t.blocks + t.blocks[-1:] * (longest - len(t.blocks)) for t in self.tables]
        blocks = torch.tensor(padded, device=self.keys.device)
        positions = self.lengths[:, None] + torch.arange(n_new, device=blocks.device)
        size = self.pool.block_size
        return blocks.gather(1, positions // size) * size + positions % size, blocks

    def advance(self, n: int | Tensor | list[int]) -> None:
        """Count the last ``n`` written tokens as real: one number, or one for each row."""
        super().advance(n)
        self._resize()

    def rewind(self, n: int) -> None:
        """Forget the last ``n`` tokens of every row, and free the blocks that held only them."""
        super().rewind(n)
        self._resize()

    def _resize(self) -> None:
        for table, length in zip(self.tables, self._lengths, strict=True):
            self.pool.resize(table, length)
        self._layout = None

    def keep(self, rows: Tensor) -> None:
        """Keep the rows named by indices (B',) or a boolean mask (B,), and free the others.

        A row that is named twice goes on as two, which share its blocks.
        """
        rows = torch.as_tensor(rows)
        rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        kept = [self.pool.fork(self.tables[row]) for row in rows.tolist()]
        for table in self.tables:
            self.pool.resize(table, 0)
        self._hold(kept)


def paged_cache(
    config: ModelConfig,
    batch_size: int,
    max_length: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PagedCache:
    """Empty rows with a pool of their own, for `generate(…, cache_type=paged_cache)`."""
    n_blocks = batch_size * -(-max_length // BLOCK_SIZE)
    pool = BlockPool(config, n_blocks, BLOCK_SIZE, device, dtype)
    return PagedCache(pool, [BlockTable() for _ in range(batch_size)])


def scatter(room: Tensor, slots: Tensor, new: Tensor) -> None:
    """Put new (B, K, T, D) into slots (B, T) of a layer's room (n_blocks, block_size, K, D)."""
    room.flatten(0, 1)[slots] = new.transpose(1, 2).to(room.dtype)


def gather(room: Tensor, blocks: Tensor, length: int) -> Tensor:
    """The first tokens in blocks (B, N) of a layer's room, as a copy: (B, K, length, D)."""
    rows = room.index_select(0, blocks.flatten()).unflatten(0, blocks.shape).flatten(1, 2)
    return rows[:, :length].transpose(1, 2)


def block_hash(before: bytes, tokens: Sequence[int]) -> bytes:
    """Of a block's tokens and, through the hash of the block before it, of all that precede.

    SHA-256, because equal hashes count as equal texts: nobody can find two that collide.
    """
    return hashlib.sha256(before + array("q", tokens).tobytes()).digest()
