"""Continuous batching: requests join and leave a running batch between any two tokens.

A batch that waits for its longest row wastes the places of the others, and a request that comes
late would wait for all of them. So the unit of work here is one step. Each step gives every running
request exactly one token: those already in the batch share one pass, and each that joins is read
in a pass of its own, which finds what others have left of its beginning (see `paged`).

What a request samples depends on its prompt, sampler and seed alone, as with `generate`. (Not so a
mixture of experts with a capacity limit: there a full expert drops tokens of neighbours.)

Requests start in the order in which they came. Nothing is set aside for their answers, so blocks
may run out. Then the youngest gives its blocks back and waits at the head of the queue, to be
recomputed later; the oldest always goes on, so every request ends.

Source: Yu et al. 2022, *Orca: A Distributed Serving System for Transformer-Based Generative
Models*, §3 (steps as the unit); preemption with recomputation after Kwon et al. 2023, §4.5.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from minillm.infer.engine import PADDING, check_prompts, decode_step, uniform_rows
from minillm.infer.paged import BLOCK_SIZE, BlockPool, BlockTable, PagedCache
from minillm.infer.sampling import Sampler
from minillm.model.transformer import Transformer


class QueueFull(RuntimeError):
    """As many requests wait as may wait; try again later."""


@dataclass(frozen=True)
class Request:
    """What somebody wants continued.

    With the same seed it gives the tokens of
    `generate(model, [prompt], …, generator=torch.Generator().manual_seed(seed))`.
    """

    prompt: list[int]
    max_new_tokens: int
    stop_tokens: Sequence[int] = ()
    sampler: Sampler = field(default_factory=Sampler)
    seed: int = 0


class Event(NamedTuple):
    """One new token of a request, its end, or both; stop tokens are not given."""

    id: int
    token: int | None
    finish: Literal["stop", "length", "cancelled"] | None = None


@dataclass(eq=False)
class _Row:
    """A request on its way. `tokens` are the prompt and what has been chosen so far."""

    id: int
    request: Request
    tokens: list[int]
    uniforms: list[float]  # one for each new token, whenever it is chosen
    table: BlockTable = field(default_factory=BlockTable)

    @property
    def n_new(self) -> int:
        return len(self.tokens) - len(self.request.prompt)


class Scheduler:
    """Decodes many requests at once: `add` and `cancel` at any time, `step` in a loop.

        scheduler = Scheduler(model, n_blocks=256)
        scheduler.add(Request(prompt, max_new_tokens=64))
        while not scheduler.idle:
            for id, token, finish in scheduler.step(): ...

    For one thread at a time.

    Attributes:
        pool: the blocks; `pool.n_free` is `pool.n_blocks` whenever nothing runs.
        n_preempted: how often a request had to give its blocks back.
        n_read, n_found: tokens of joining requests that were computed, and that were found in
            the pool.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        n_blocks: int,
        block_size: int = BLOCK_SIZE,
        max_batch: int = 8,
        max_waiting: int = 64,
        pool_type: type[BlockPool] = BlockPool,
    ):
        """Set up an empty batch.

        Args:
            model: a decoder, on any device.
            n_blocks: memory for so many blocks is taken at once, `model.kv_bytes(block_size)` each.
            max_batch: the most requests that run at the same time.
            max_waiting: the most requests that wait to run.
            pool_type: what holds keys and values, such as `adapt.quant_cache.Int8Pool`.
        """
        if max_batch < 1 or max_waiting < 1:
            raise ValueError(
                f"max_batch={max_batch}, max_waiting={max_waiting}: both must be at least 1"
            )
        dtype = next(model.parameters()).dtype
        self.pool = pool_type(model.config, n_blocks, block_size, model.device, dtype)
        self.model, self.max_batch, self.max_waiting = model, max_batch, max_waiting
        self.n_preempted = self.n_read = self.n_found = 0
        # Oldest first. Whoever waits is younger than all who run.
        self._running: list[_Row] = []
        self._waiting: deque[_Row] = deque()
        self._cancelled: list[int] = []
        self._next_id = 0

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Nothing runs, waits or is left to be reported."""
        return not (self._running or self._waiting or self._cancelled)

    def add(self, request: Request) -> int:
        """Put a request at the end of the queue; returns the id that its events carry.

        Raises:
            ValueError: an empty prompt, an id outside the vocabulary, or a text that can never
                fit into the model's context or into all blocks together.
            QueueFull: `max_waiting` others wait already.
        """
        check_prompts(self.model, [request.prompt], request.max_new_tokens)
        # The last token is chosen but never read.
        longest = len(request.prompt) + request.max_new_tokens - 1
        if self.pool.n_missing(BlockTable(), longest) > self.pool.n_blocks:
            raise ValueError(
                f"the prompt has {len(request.prompt)} tokens and {request.max_new_tokens} are to "
                f"follow; {self.pool.n_blocks} blocks of {self.pool.block_size} tokens cannot hold "
                "them, shorten one of them"
            )
        if len(self._waiting) >= self.max_waiting:
            raise QueueFull(f"{len(self._waiting)} requests are waiting already; try again later")
        generator = torch.Generator().manual_seed(request.seed)
        uniforms = uniform_rows(1, request.max_new_tokens, generator)[0].tolist()
        self._waiting.append(_Row(self._next_id, request, list(request.prompt), uniforms))
        self._next_id += 1
        return self._waiting[-1].id

    def cancel(self, id: int) -> None:
        """End a request now; the next step reports it. One that is finished or unknown: nothing."""
        for row in [*self._running, *self._waiting]:
            if row.id == id:
                self._leave(row)
                self._cancelled.append(id)

    def step(self) -> list[Event]:
        """One token for every request that runs, and for those that can now join."""
        events = [Event(id, None, "cancelled") for id in self._cancelled]
        self._cancelled.clear()
        return events + self._decode() + self._admit()

    @torch.inference_mode()
    def _decode(self) -> list[Event]:
        """One pass for all that run, each feeding the token it got last."""
        while sum(self.pool.n_missing(row.table, 1) for row in self._running) > self.pool.n_free:
            self._preempt(self._running[-1])
        if not self._running:
            return []
        rows = list(self._running)
        newest = torch.tensor([row.tokens[-1] for row in rows], device=self.model.device)
        logits = decode_step(self.model, newest, PagedCache(self.pool, [row.table for row in rows]))
        return self._choose(rows, logits)

    def _admit(self) -> list[Event]:
        """Start those who wait, in order, while there are places and blocks."""
        events = []
        while self._waiting and len(self._running) < self.max_batch:
            row = self._waiting[0]
            # The last token is always read: what comes after it is wanted.
            row.table = self.pool.find(row.tokens[:-1])
            n_new = len(row.tokens) - row.table.length
            # A block for each that runs is left over, or the next step might preempt again.
            if self.pool.n_missing(row.table, n_new) + len(self._running) > self.pool.n_free:
                self.pool.resize(row.table, 0)
                break
            self._running.append(self._waiting.popleft())
            self.n_found += row.table.length
            self.n_read += n_new
            events += self._choose([row], self._read(row))
        return events

    @torch.inference_mode()
    def _read(self, row: _Row) -> Tensor:
        """Read what the row's blocks do not hold yet: logits (1, V) after the last token."""
        new = torch.tensor([row.tokens[row.table.length :]], device=self.model.device)
        cache = PagedCache(self.pool, [row.table])
        hidden = self.model.hidden(new, cache=cache)
        cache.advance(new.shape[1])
        return self.model.logits(hidden[:, -1])

    def _choose(self, rows: list[_Row], logits: Tensor) -> list[Event]:
        """The next token of each row from logits (B, V); equal samplers work together."""
        places_of: dict[Sampler, list[int]] = {}
        for place, row in enumerate(rows):
            places_of.setdefault(row.request.sampler, []).append(place)
        tokens = [0] * len(rows)
        for sampler, places in places_of.items():
            group = [rows[place] for place in places]
            uniforms = torch.tensor([row.uniforms[row.n_new] for row in group]).to(logits.device)
            of_group = logits if len(group) == len(rows) else logits[places]  # a copy is large
            chosen = sampler.choose(of_group, uniforms, _histories(group, logits.device))
            for place, token in zip(places, chosen.tolist(), strict=True):
                tokens[place] = token
        return [self._take(row, token) for row, token in zip(rows, tokens, strict=True)]

    def _take(self, row: _Row, token: int) -> Event:
        """Add a chosen token to its row, which may end with it."""
        self.pool.publish(row.table, row.tokens)
        if token in row.request.stop_tokens:
            self._leave(row)
            return Event(row.id, None, "stop")
        row.tokens.append(token)
        if row.n_new < row.request.max_new_tokens:
            return Event(row.id, token)
        self._leave(row)
        return Event(row.id, token, "length")

    def _leave(self, row: _Row) -> None:
        self.pool.resize(row.table, 0)
        (self._running if row in self._running else self._waiting).remove(row)

    def _preempt(self, row: _Row) -> None:
        self._leave(row)
        self._waiting.appendleft(row)
        self.n_preempted += 1


def _histories(rows: list[_Row], device: torch.device) -> Tensor | None:
    """All tokens of each row (B, T), padded on the right, where a sampler asks for them."""
    if rows[0].request.sampler.repetition_penalty == 1:
        return None
    longest = max(len(row.tokens) for row in rows)
    padded = [row.tokens + [PADDING] * (longest - len(row.tokens)) for row in rows]
    return torch.tensor(padded, device=device)
