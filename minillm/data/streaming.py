"""Streaming: batches from more text than fits in memory, the same ones for any number of processes.

The documents of a `datasets.IterableDataset` are dealt to a fixed number of *streams*. Each stream
lays its documents end to end and cuts the line into rows, as in `packing.py`, and always fills the
same rows of a batch. A process takes some of the streams and reads only those:

    batch of 8 rows      streams     1 process   2 processes   4 processes
    rows 0 1                0             0           0             0
    rows 2 3                1             0           0             1
    rows 4 5                2             0           1             2
    rows 6 7                3             0           1             3

So what the model learns from at a step depends on the number of streams, never on the number of
processes, and the position of a run is the positions of its streams.

Shapes: B batch (rows), T time (tokens in a row).
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node

from minillm.data import stories
from minillm.data.packing import Batch

SHARDS = 64  # of generated stories: many numbers of streams divide it


def streamed_stories(n: int, seed: int) -> IterableDataset:
    """About `n` generated stories in shards, column text; each is drawn when it is read."""
    seeds = [seed * SHARDS + shard for shard in range(SHARDS)]
    return IterableDataset.from_generator(
        _draw_stories, gen_kwargs={"seeds": seeds, "n_each": max(1, n // SHARDS)}
    )


def _draw_stories(seeds: list[int], n_each: int) -> Iterator[dict]:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(n_each):
            yield {"text": stories.sample_story(generator).text}


class StreamedBatches:
    """Batches without end, epoch after epoch, that can be resumed anywhere.

    Args:
        dataset: best has a multiple of `n_streams` files or shards: each stream then reads its
            own. With another number every stream reads everything and keeps its part.
        encode: text → token ids.
        block_size: T.  batch_size: rows of a batch, those of all processes together.
        end_token: separates documents.
        n_streams: a divisor of `batch_size`.
        part: (which, of how many): this process takes so many of the streams, (0, 1) all.
        seed: of the order in which documents come.
        window: each stream shuffles this many documents at a time; 1 keeps their order.
        column: where the text stands.
        mask_documents: fill `Batch.documents`, so that packed neighbours do not see each other.

    Raises:
        ValueError: numbers that do not divide each other, or a size below 1.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        encode: Callable[[str], list[int]],
        *,
        block_size: int,
        batch_size: int,
        end_token: int,
        n_streams: int = 1,
        part: tuple[int, int] = (0, 1),
        seed: int = 0,
        window: int = 1000,
        column: str = "text",
        mask_documents: bool = False,
    ):
        sizes = {"block_size": block_size, "batch_size": batch_size, "n_streams": n_streams}
        for name, value in {**sizes, "window": window}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        which, n_parts = part
        if batch_size % n_streams or n_streams % n_parts:
            raise ValueError(
                f"batch_size={batch_size}, n_streams={n_streams}, {n_parts} processes: expected "
                "streams that divide the rows of a batch, and processes that divide the streams"
            )
        self.sizes = sizes
        self.end_token, self.mask_documents = end_token, mask_documents
        own = range(which * n_streams // n_parts, (which + 1) * n_streams // n_parts)
        self.streams = {
            number: _Stream(
                # A copy, for a dataset keeps its place in itself, and streams stand at their own.
                split_dataset_by_node(copy.deepcopy(dataset), number, n_streams),
                lambda document: [end_token, *encode(document[column])],
                block_size,
                window,
                f"{seed}/{number}",
            )
            for number in own
        }

    def forever(self) -> Iterator[Batch]:
        """This process's rows of one batch after the other."""
        n_rows = self.sizes["batch_size"] // self.sizes["n_streams"]
        while True:
            rows = [row for s in self.streams.values() for row in islice(s.rows, n_rows)]
            yield self._batch(torch.tensor(rows))

    __iter__ = forever

    def _batch(self, line: torch.Tensor) -> Batch:
        """(B, T + 1) → inputs and, one step later, targets."""
        tokens, targets = line[:, :-1].contiguous(), line[:, 1:].contiguous()
        # Every document stands behind an end token, which is its first input.
        documents = (tokens == self.end_token).cumsum(1) if self.mask_documents else None
        return Batch(tokens, targets, documents)

    def state_dict(self) -> dict[str, str]:
        """Where the streams of this process stand; `sizes` says what they were cut into.

        The states of all processes together can be given to any number of processes again.
        """
        states = {f"stream {number}": stream.state() for number, stream in self.streams.items()}
        return {name: json.dumps(state) for name, state in states.items()}

    def load_state_dict(self, states: dict[str, str]) -> None:
        """Go on where each stream of this process stood.

        Raises:
            ValueError: one of them is missing: the run had another number of streams.
        """
        for number, stream in self.streams.items():
            if f"stream {number}" not in states:
                raise ValueError(f"no position of stream {number}: keep n_streams as it was")
            stream.load(json.loads(states[f"stream {number}"]))


class _Stream:
    """One endless line of tokens, cut into rows.

    Documents are read a window at a time, and shuffled within it by a seed made of the place of the
    window. So a place is known by the state of the dataset at the window's start, the tokens left
    over there, and the rows taken since.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        encode: Callable[[dict], list[int]],
        block_size: int,
        window: int,
        seed: str,
    ):
        self.dataset, self.encode, self.block_size = dataset, encode, block_size
        self.size_of_window, self.seed = window, seed
        self.epoch, self.window, self.taken = 0, 0, 0
        self.start: dict | None = None  # the dataset's state where the window starts
        self.carried: list[int] = []  # tokens left over from the windows before
        self._open()

    def _open(self) -> None:
        self._reader: Iterator[dict] | None = None  # of this epoch's documents
        self.rows = self._cut()  # T + 1 tokens each, the first of them the last of the row before

    def state(self) -> dict:
        names = ("epoch", "window", "taken", "start", "carried", "block_size")
        return {name: getattr(self, name) for name in names}

    def load(self, state: dict) -> None:
        if state["block_size"] != self.block_size:
            raise ValueError(
                f"the position is one in rows of {state['block_size']} tokens, these have "
                f"{self.block_size}: keep block_size as it was"
            )
        for name, value in state.items():
            setattr(self, name, value)
        self._open()

    def _cut(self) -> Iterator[list[int]]:
        line, size, skip = list(self.carried), self.block_size, self.taken
        while True:
            for document in self._documents():
                line += self.encode(document)
                last = (len(line) - 1) // size * size  # where the next row will begin
                for first in range(0, last, size):
                    if skip:
                        skip -= 1
                    else:
                        self.taken += 1
                        yield line[first : first + size + 1]
                line = line[last:]
            self._close_window(line)

    def _documents(self) -> list[dict]:
        """Read the present window, and shuffle it."""
        if self._reader is None:
            self.dataset.set_epoch(self.epoch)  # after the first, the files come in a new order
            if self.start is not None:
                self.dataset.load_state_dict(self.start)
            self._reader = iter(self.dataset)
        documents = list(islice(self._reader, self.size_of_window))
        if not documents and self.window == 0:
            raise ValueError("a stream got no documents: lower n_streams")
        random.Random(f"{self.seed}/{self.epoch}/{self.window}").shuffle(documents)
        self._is_last = len(documents) < self.size_of_window
        return documents

    def _close_window(self, line: list[int]) -> None:
        """Move on to the next window, of the next epoch if this was the last."""
        self.carried, self.taken = list(line), 0  # a copy: the line grows on
        if self._is_last:
            self.epoch, self.window, self.start, self._reader = self.epoch + 1, 0, None, None
        else:
            self.window, self.start = self.window + 1, self.dataset.state_dict()
