"""Instruction tuning: teach a model to answer, and to stop.

A conversation is written down with the model's template; only what the assistant says is learned,
and the token that ends its turn. Everything else is given.

Shapes: B batch, T time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from minillm.data.packing import IGNORE, Batch
from minillm.data.tokenizer import Tokenizer
from minillm.infer.chat import Template

ROLES = ("system", "user", "assistant")
# (role, content) pairs, in the order in which they were said.
Messages = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Example:
    """One conversation as token ids, and what to learn at each: the next token, or IGNORE."""

    tokens: list[int]
    targets: list[int]


def read_chats(path: str | Path) -> list[list[tuple[str, str]]]:
    """Conversations from a JSONL file with lines like
    ``{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}``.

    Raises:
        ValueError: names the line and what is wrong with it.
    """
    chats = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    # Some editors put a mark before the first letter of a file; "-sig" drops it.
                    chats.append(_read_chat(json.loads(line.strip().decode("utf-8-sig"))))
                except json.JSONDecodeError as error:
                    about = f"no JSON: {error.msg}, at column {error.colno}"
                    raise ValueError(f"{path}, line {number}: {about}") from None
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from None
    if not chats:
        raise ValueError(f"{path} holds no conversations")
    return chats


def _read_chat(entry: object) -> list[tuple[str, str]]:
    messages = entry.get("messages") if isinstance(entry, dict) else None
    if not isinstance(messages, list) or not messages:
        raise ValueError('expected {"messages": [...]} with at least one message')
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(f"message {message!r}: expected a role out of {ROLES}")
        if not isinstance(message.get("content"), str):
            raise ValueError(f"message {message!r}: expected a text as content")
        message["content"].encode()  # JSON can hold halves of characters; a tokenizer cannot
    if not any(m["role"] == "assistant" and m["content"].strip() for m in messages):
        raise ValueError("nothing to learn: the assistant says nothing")
    return [(message["role"], message["content"]) for message in messages]


def encode_chat(
    messages: Messages, template: Template, tokenizer: Tokenizer, learn_prompt: bool = False
) -> Example:
    """A conversation as a training example.

    Args:
        messages: (role, content) pairs.
        learn_prompt: learn the other side's words, too. Usually a mistake; lessons compare.

    Raises:
        ValueError: the template has no token that ends a turn.
    """
    if template.end is None:
        raise ValueError(f"the template {template.name!r} has no end token: nothing would stop")
    end = tokenizer.special_tokens[template.end]
    tokens = template.encode(tokenizer, [], answer=False)
    learned = [learn_prompt] * len(tokens)
    for role, content in messages:
        # In the same three pieces in which a chat writes an answer.
        opening, closing = template.opening(tokenizer, role), template.closing(tokenizer)
        said = tokenizer.encode(content)
        answers = role == "assistant"
        tokens += opening + said + closing
        learned += [learn_prompt] * len(opening) + [answers or learn_prompt] * len(said)
        # Of what closes a turn, the model itself writes only the end token.
        learned += [(answers and token == end) or learn_prompt for token in closing]
    targets = [t if keep else IGNORE for t, keep in zip(tokens[1:], learned[1:], strict=True)]
    return Example(tokens[:-1], targets)


def pad(examples: Sequence[Example]) -> Batch:
    """Examples of different lengths, one to a row, padded on the right with what nothing learns."""
    longest = max(len(example.tokens) for example in examples)
    tokens = torch.zeros(len(examples), longest, dtype=torch.int64)
    targets = torch.full_like(tokens, IGNORE)
    for row, example in enumerate(examples):
        n = len(example.tokens)
        tokens[row, :n] = torch.tensor(example.tokens)
        targets[row, :n] = torch.tensor(example.targets)
    return Batch(tokens, targets)


def padded_batches(
    examples: Sequence[Example], batch_size: int, generator: torch.Generator | None = None
) -> Iterator[Batch]:
    """One epoch of padded batches; shuffled if there is a generator."""
    for chosen in torch.tensor(_order(examples, generator)).split(batch_size):
        yield pad([examples[i] for i in chosen.tolist()])


def pack(
    examples: Sequence[Example], block_size: int, generator: torch.Generator | None = None
) -> Batch:
    """Several examples to a row, each blind to the others: hardly any padding.

    Every example goes into the first row with room. ``documents`` of the batch keeps attention
    inside an example; positions run on through a row.

    Returns:
        A batch of as many rows of ``block_size`` as are needed; padding is a document of its own.

    Raises:
        ValueError: an example that is longer than a row.
    """
    rows: list[list[Example]] = []
    room: list[int] = []
    for i in _order(examples, generator):
        n = len(examples[i].tokens)
        if n > block_size:
            raise ValueError(f"example {i} has {n} tokens, and a row only {block_size}")
        row = next((r for r, left in enumerate(room) if left >= n), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(block_size)
        rows[row].append(examples[i])
        room[row] -= n
    tokens = torch.zeros(len(rows), block_size, dtype=torch.int64)
    targets, documents = torch.full_like(tokens, IGNORE), torch.zeros_like(tokens)
    for r, row in enumerate(rows):
        start = 0
        for number, example in enumerate(row, start=1):
            stop = start + len(example.tokens)
            tokens[r, start:stop] = torch.tensor(example.tokens)
            targets[r, start:stop] = torch.tensor(example.targets)
            documents[r, start:stop] = number
            start = stop
    return Batch(tokens, targets, documents)


def _order(examples: Sequence[Example], generator: torch.Generator | None) -> list[int]:
    if not examples:
        raise ValueError("no examples")
    if generator is None:
        return list(range(len(examples)))
    return torch.randperm(len(examples), generator=generator).tolist()
