"""Self-Instruct: a model writes instructions and answers them; rules keep what is fit to learn.

A few instructions by people are shown to a model that continues with another one; a tuned model
answers it; what is malformed, unsure, too like what we have, refused, or too frequent is dropped;
the rest joins the pool, and the next instructions are written with it in view. No rule knows the
right answers.

Source: Wang et al. 2023, "Self-Instruct", §2. The votes on an answer are not in the paper.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from minillm.data.tokenizer import Tokenizer
from minillm.infer.chat import Template
from minillm.infer.engine import generate
from minillm.infer.sampling import Sampler
from minillm.model.transformer import Transformer


@dataclass(frozen=True)
class Pair:
    """An instruction with its answer."""

    instruction: str
    answer: str

    @property
    def messages(self) -> list[tuple[str, str]]:
        """As a conversation of one exchange, for `sft.encode_chat`."""
        return [("user", self.instruction), ("assistant", self.answer)]


def opening(instruction: str) -> str:
    """What an instruction is about, roughly: its first two words, "please" aside."""
    words = instruction.lower().replace(":", " ").split()
    return " ".join([word for word in words if word != "please"][:2])


@dataclass(frozen=True)
class Rules:
    """What is kept.

    Attributes:
        max_overlap: `rouge_l` with any instruction in the pool must stay below (0.7 in the paper).
        n_words: fewest and most words of an instruction.
        refused: no instruction or answer may hold one of these words.
        per_kind: most instructions of one kind in the pool; None is any number.
        kind_of: the kind of an instruction.
    """

    max_overlap: float = 0.7
    n_words: tuple[int, int] = (3, 40)
    refused: tuple[str, ...] = ()
    per_kind: int | None = None
    kind_of: Callable[[str], str] = opening

    def __post_init__(self):
        if not 0 < self.max_overlap <= 1:
            raise ValueError(f"max_overlap={self.max_overlap}: expected above 0 and at most 1")
        if not 1 <= self.n_words[0] <= self.n_words[1]:
            raise ValueError(f"n_words={self.n_words}: expected fewest and most, 1 or more")


@dataclass
class Harvest:
    """What a run gave: the pairs that were kept, and the dropped ones under the reason why."""

    kept: list[Pair] = field(default_factory=list)
    dropped: dict[str, list[Pair]] = field(default_factory=dict)


def rouge_l(a: str, b: str) -> float:
    """F-measure of the longest common subsequence of words: 1 for equal texts, 0 for disjoint ones.

    >>> rouge_l("reverse the words: dog cat", "repeat the words: cat sun")
    0.6

    Source: Lin 2004, "ROUGE", §3, with equal weight on both sides.
    """
    x, y = a.lower().split(), b.lower().split()
    if not x or not y:
        return 0.0
    longest = [0] * (len(y) + 1)  # of what was read of x, and the first j words of y
    for word in x:
        diagonal = 0
        for j, other in enumerate(y, start=1):
            above = longest[j]
            longest[j] = diagonal + 1 if word == other else max(above, longest[j - 1])
            diagonal = above
    return 2 * longest[-1] / (len(x) + len(y))


def propose(
    model: Transformer,
    tokenizer: Tokenizer,
    pool: Sequence[str],
    n: int,
    *,
    shown: int = 2,
    sampler: Sampler | None = None,
    generator: torch.Generator | None = None,
    max_new_tokens: int = 32,
) -> list[str]:
    """New instructions: the model sees a few from the pool, one a line, and writes the next line.

    Args:
        model: best a base model: continuing a list is what it does.
        shown: how many it sees, another choice each time.

    Returns:
        n lines, of which some may be empty.

    Raises:
        ValueError: the pool is smaller than what is to be shown.
    """
    if not 1 <= shown <= len(pool):
        raise ValueError(f"shown={shown}: expected 1 to {len(pool)}, the instructions in the pool")
    prompts = []
    for _ in range(n):
        chosen = torch.randperm(len(pool), generator=generator)[:shown].tolist()
        listed = "".join(f"{pool[i]}\n" for i in chosen)
        prompts.append([tokenizer.end_of_text, *tokenizer.encode(listed)])
    lines = generate(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        stop_tokens=(tokenizer.end_of_text,),
        sampler=sampler,
        generator=generator,
    )
    special = set(tokenizer.special_tokens.values())  # would not survive as text
    texts = [tokenizer.decode([token for token in line if token not in special]) for line in lines]
    return [text.partition("\n")[0].strip() for text in texts]


def respond(
    model: Transformer,
    tokenizer: Tokenizer,
    template: Template,
    instructions: Sequence[str],
    *,
    votes: int = 1,
    generator: torch.Generator | None = None,
    max_new_tokens: int = 32,
) -> list[str | None]:
    """A tuned model's answers; None where one never ends, holds a marker, or votes differ.

    Args:
        votes: how many answers to sample; 1 takes the likeliest instead.

    Raises:
        ValueError: votes is not positive.
    """
    if votes < 1:
        raise ValueError(f"votes={votes}: expected 1 or more")
    if not instructions:
        return []
    end = tokenizer.special_tokens[template.end]
    prompts = [template.encode(tokenizer, [("user", text)]) for text in instructions]
    said = generate(
        model,
        [prompt for prompt in prompts for _ in range(votes)],
        max_new_tokens=max_new_tokens,
        stop_tokens=(end,),
        sampler=Sampler(temperature=0) if votes == 1 else Sampler(),
        generator=generator,
    )
    special = set(tokenizer.special_tokens.values())
    answers: list[str | None] = []
    for first in range(0, len(said), votes):
        different = {tuple(answer) for answer in said[first : first + votes]}
        answer = different.pop()
        sound = len(answer) < max_new_tokens and not special & set(answer)
        answers.append(tokenizer.decode(answer) if sound and not different else None)
    return answers


def sift(pairs: Sequence[tuple[str, str | None]], pool: Sequence[str], rules: Rules) -> Harvest:
    """Keep what the rules let through, in order; each kept instruction counts for the next ones."""
    harvest = Harvest()
    known = list(pool)
    kinds = Counter(rules.kind_of(instruction) for instruction in known)
    for instruction, answer in pairs:
        reason = _objection(instruction, answer, known, kinds, rules)
        pair = Pair(instruction, answer or "")
        if reason:
            harvest.dropped.setdefault(reason, []).append(pair)
        else:
            harvest.kept.append(pair)
            known.append(instruction)
            kinds[rules.kind_of(instruction)] += 1
    return harvest


def _objection(
    instruction: str, answer: str | None, known: Sequence[str], kinds: Counter, rules: Rules
) -> str | None:
    """The first reason against a pair."""
    words = instruction.lower().split()
    if not rules.n_words[0] <= len(words) <= rules.n_words[1]:
        return "length"
    said = {word.strip(".,:;!?") for word in words + (answer or "").lower().split()}
    if said & set(rules.refused):
        return "refused"
    if not answer or answer.strip().lower() == instruction.lower():
        return "no answer"
    if rules.per_kind is not None and kinds[rules.kind_of(instruction)] >= rules.per_kind:
        return "too many of its kind"
    if any(_overlap_reaches(instruction, other, rules.max_overlap) for other in known):
        return "too similar"
    return None


def _overlap_reaches(a: str, b: str, limit: float) -> bool:
    """Whether `rouge_l` is at least `limit`; words in common, in any order, bound it from above."""
    x, y = Counter(a.lower().split()), Counter(b.lower().split())
    return 2 * (x & y).total() >= limit * (x.total() + y.total()) and rouge_l(a, b) >= limit


def self_instruct(
    writer: Transformer,
    model: Transformer,
    tokenizer: Tokenizer,
    template: Template,
    seeds: Sequence[str],
    n: int,
    *,
    rules: Rules | None = None,
    per_round: int = 64,
    max_rounds: int = 50,
    votes: int = 1,
    generator: torch.Generator | None = None,
) -> Harvest:
    """Grow a pool of instructions from a few until n pairs are kept.

    Args:
        writer: writes instructions; `model` answers them. They may be the same.
        seeds: instructions by people; they are shown, and nothing too like them is kept.
        per_round: instructions written between two looks at the pool.
        max_rounds: give up then, with fewer.
        votes: see `respond`.

    Raises:
        ValueError: fewer than two seeds, or n, per_round or max_rounds is not positive.
    """
    if len(seeds) < 2 or min(n, per_round, max_rounds) < 1:
        raise ValueError(
            f"{len(seeds)} seeds, n={n}, per_round={per_round}, max_rounds={max_rounds}: expected "
            "two seeds or more and positive numbers"
        )
    harvest, pool = Harvest(), list(seeds)
    for _ in range(max_rounds):
        written = propose(writer, tokenizer, pool, per_round, generator=generator)
        written = [text for text in written if text]
        answers = respond(model, tokenizer, template, written, votes=votes, generator=generator)
        found = sift(list(zip(written, answers, strict=True)), pool, rules or Rules())
        harvest.kept += found.kept[: n - len(harvest.kept)]
        pool += [pair.instruction for pair in found.kept]
        for reason, pairs in found.dropped.items():
            harvest.dropped.setdefault(reason, []).extend(pairs)
        if len(harvest.kept) == n:
            break
    return harvest
