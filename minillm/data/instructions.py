"""Generated instructions with known answers, such as "Words: dog cat. Use the plural."

An instruction names one step or a few, one after the other, and a list of everyday nouns; the steps
and their phrasings stand in `instruction_steps.py`. Since the right answer is computed, whether a
model follows an instruction it has never seen is counted, not judged.

Everything is text in and text out, so any tokenizer will do; `WordTokenizer` knows just these words
and lets a very small model take part. `documents` writes what such a model can read before it is
tuned: sentences that show what each step does, and sheets of instructions that nobody answers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minillm.data.instruction_steps import NOUNS, STEPS

Kind = tuple[str, ...]  # names of steps, in the order in which they are taken
SINGLES: list[Kind] = [(name,) for name in STEPS if name != "french"]


def compositions() -> list[Kind]:
    """All pairs of different steps that ask for something: 72 kinds, none with French.

    Left out are two steps that both change words (the plural of a Spanish word is not known), and
    what is done to the places of a single word.
    """
    pairs = []
    for (one,) in SINGLES:
        for (two,) in SINGLES:
            both_change_words = STEPS[one].each_word and STEPS[two].each_word
            nothing_to_move = one in ("first", "last") and not STEPS[two].each_word
            if one != two and not both_change_words and not nothing_to_move:
                pairs.append((one, two))
    return pairs


def split_kinds(
    kinds: Sequence[Kind], n_held_out: int, generator: torch.Generator | None = None
) -> tuple[list[Kind], list[Kind]]:
    """Kinds in a random order, cut in two: those to learn from, and those held out.

    Raises:
        ValueError: n_held_out is negative, or leaves nothing.
    """
    if not 0 <= n_held_out < len(kinds):
        raise ValueError(f"n_held_out={n_held_out}: expected 0 to {len(kinds) - 1}")
    order = torch.randperm(len(kinds), generator=generator).tolist()
    shuffled = [kinds[i] for i in order]
    return shuffled[n_held_out:], shuffled[:n_held_out]


@dataclass(frozen=True)
class Task:
    """An instruction, its only right answer, and how it was made."""

    instruction: str
    answer: str
    kind: Kind
    words: tuple[str, ...]

    @property
    def messages(self) -> list[tuple[str, str]]:
        """As a conversation of one exchange, for `adapt.sft.encode_chat`."""
        return [("user", self.instruction), ("assistant", self.answer)]

    def solved_by(self, text: str) -> bool:
        """Whether a text is the answer, apart from space around it and a full stop behind it."""
        return text.strip().removesuffix(".").split() == self.answer.split()


def solve(kind: Kind, words: Sequence[str]) -> list[str]:
    """Take all steps of a kind, one after the other.

    >>> solve(("reverse", "plural"), ["dog", "leaf"])
    ['leaves', 'dogs']

    Raises:
        ValueError: there is no such step, or a step does not know a word.
    """
    done = list(words)
    for name in kind:
        if name not in STEPS:
            raise ValueError(f"step {name!r}: expected one of {', '.join(STEPS)}")
        try:
            done = STEPS[name].apply(done)
        except KeyError as error:
            raise ValueError(f"{name!r} does not know the word {error.args[0]!r}") from None
    return done


def sample_task(
    kind: Kind, generator: torch.Generator | None = None, phrasings: Sequence[int] = range(4)
) -> Task:
    """One instruction of a kind, about three to five different words.

    Args:
        phrasings: which of the four clauses of each step may be used; keep one back to see whether
            a model understands words it was not tuned on.
    """
    words = _sample_words(generator)
    clause, listed = _request(kind, generator, phrasings), " ".join(words)
    frames = (
        f"words: {listed}. {_sentence(clause)}.",
        f"words: {listed}. Please {clause}.",
        f"here are some words: {listed}. {_sentence(clause)}.",
    )
    return Task(_sentence(_pick(frames, generator)), " ".join(solve(kind, words)), kind, words)


def tasks(
    n: int,
    kinds: Sequence[Kind],
    generator: torch.Generator | None = None,
    phrasings: Sequence[int] = range(4),
) -> list[Task]:
    """n different instructions, the kinds in turn, so that all are equally frequent.

    Raises:
        ValueError: n is negative, or there are no kinds or phrasings to choose from.
    """
    if n < 0 or not kinds or not phrasings:
        raise ValueError(
            f"n={n} instructions of {len(kinds)} kinds in {len(phrasings)} phrasings: expected "
            "0 or more, and something to choose from"
        )
    distinct: dict[str, Task] = {}
    while len(distinct) < n:
        task = sample_task(kinds[len(distinct) % len(kinds)], generator, phrasings)
        distinct.setdefault(task.instruction, task)
    return list(distinct.values())


def sample_conversation(
    kind: Kind, generator: torch.Generator | None = None, phrasings: Sequence[int] = range(4)
) -> list[tuple[str, str]]:
    """The steps of a kind asked for one by one, each about the answer before.

    Returns:
        (role, content) pairs: "Words: dog cat. Reverse the words." and its answer "cat dog", then
        "Now use the plural." and "cats dogs"…
    """
    task = sample_task(kind[:1], generator, phrasings)
    said, messages = task.answer.split(), task.messages
    for name in kind[1:]:
        said = solve((name,), said)
        follow_up = f"Now {_clause(name, generator, phrasings)}."
        messages = [*messages, ("user", follow_up), ("assistant", " ".join(said))]
    return messages


def documents(
    n: int, generator: torch.Generator | None = None, kinds: Sequence[Kind] = SINGLES
) -> list[str]:
    """Plain text about the steps, with no instruction that is followed by its answer.

    Four of five tell of a list and of what becomes of it; every fifth is a sheet of three or four
    instructions, one a line, with nothing in between. Whoever reads them learns what all the words
    mean, and that after an instruction comes the next one.

    Raises:
        ValueError: n is negative, or there are no kinds.
    """
    if n < 0 or not kinds:
        raise ValueError(f"n={n} documents about {len(kinds)} kinds: expected 0 or more, of some")
    write = (_sheet, _account, _account, _account, _account)
    return [_pick(write, generator)(kinds, generator) for _ in range(n)]


def _account(kinds: Sequence[Kind], generator: torch.Generator | None) -> str:
    """A list, and what becomes of it in three ways."""
    words = _sample_words(generator)
    text = f"Take {' '.join(words)}."
    for _ in range(3):
        kind = _pick(kinds, generator)
        answer = " ".join(solve(kind, words))
        text += f" If you {_request(kind, generator)}, you get: {answer}."
    return text


def _sheet(kinds: Sequence[Kind], generator: torch.Generator | None) -> str:
    """A few instructions, one a line."""
    n = 3 + _below(2, generator)
    return "\n".join(sample_task(_pick(kinds, generator), generator).instruction for _ in range(n))


def nats(document: str) -> float:
    """Exact information in one of the `documents` about single steps: −ln of its probability.

    Every choice shows in the text and all are equally likely, apart from that between the two
    sorts of document. A language model's summed loss is on average no less.
    """
    lines = document.split("\n")
    if document.startswith("Take "):
        total, n_clauses = -math.log(4 / 5), 3
    else:
        total, n_clauses = -math.log(1 / 5) + math.log(2) + len(lines) * math.log(3), len(lines)
    for line in lines:
        listed = re.split("Take |ords: ", line)[1].partition(".")[0].split()
        total += math.log(3) + sum(math.log(len(NOUNS) - i) for i in range(len(listed)))
    return total + n_clauses * math.log(4 * len(SINGLES))


def _sample_words(generator: torch.Generator | None) -> tuple[str, ...]:
    chosen = torch.randperm(len(NOUNS), generator=generator)[: 3 + _below(3, generator)]
    return tuple(NOUNS[i] for i in chosen.tolist())


def _request(
    kind: Kind, generator: torch.Generator | None, phrasings: Sequence[int] = range(4)
) -> str:
    return ", then ".join(_clause(name, generator, phrasings) for name in kind)


def _clause(name: str, generator: torch.Generator | None, phrasings: Sequence[int]) -> str:
    return STEPS[name].clauses[_pick(phrasings, generator)]


def _pick(items: Sequence, generator: torch.Generator | None):
    return items[_below(len(items), generator)]


def _below(n: int, generator: torch.Generator | None) -> int:
    return int(torch.randint(n, (), generator=generator))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
