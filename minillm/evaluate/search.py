"""Spend more compute on one question: vote, rank, search step by step, think longer.

All of it asks two things only. A policy proposes continuations; a `value` says how good a
response looks, whole or unfinished, such as `evaluate.verifiers.verdicts`. The searches take many
prompts at once, so that every round is one batch.

A *step* ends with one of `step_ends`, or after `max_step_tokens`.

Shapes: P prompts, B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.infer.engine import generate
from minillm.infer.rollout import rollout
from minillm.infer.sampling import Sampler
from minillm.model.transformer import Transformer

Tokens = tuple[int, ...]
Value = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], Tensor]  # (B,) from B pairs


def vote(answers: Sequence[Hashable], weights: Sequence[float] | None = None) -> Hashable:
    """The answer with most votes; of equals the one that came first; None if nobody answered.

    Self-consistency (Wang et al. 2023, §2). With a verifier's scores as weights every answer
    counts as much as the verifier believes it (Li et al. 2023, *DiVeRSe*, §3.2).

    Args:
        answers: one a sample, None where there is none.
        weights: one a sample, at least 0; all the same if None.

    Raises:
        ValueError: another number of weights than answers, or a negative one.
    """
    weights = [1.0] * len(answers) if weights is None else weights
    if len(weights) != len(answers) or any(not weight >= 0 for weight in weights):
        raise ValueError(
            f"{len(answers)} answers with weights {weights}: expected one each, at least 0"
        )
    votes: dict[Hashable, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            votes[answer] = votes.get(answer, 0.0) + weight
    return max(votes, key=votes.get, default=None)  # max keeps the first of equals


@dataclass(frozen=True)
class Path:
    """A response, perhaps unfinished: its tokens (a stop token included) and how good it looks."""

    tokens: Tokens = ()
    score: float = 1.0
    finished: bool = False


@dataclass(frozen=True)
class Steps:
    """How a policy continues: what ends a step, what ends a response, and how it samples."""

    policy: Transformer
    stop_tokens: tuple[int, ...]
    step_ends: tuple[int, ...] = ()
    max_step_tokens: int = 1
    max_steps: int = 16
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.max_step_tokens < 1 or self.max_steps < 1:
            raise ValueError(
                f"max_step_tokens={self.max_step_tokens}, max_steps={self.max_steps}: expected at "
                "least 1 each"
            )


@dataclass
class Found:
    """What a search found for each prompt, best first, and how many tokens it sampled in all."""

    paths: list[list[Path]]
    n_tokens: int = 0

    def best(self) -> list[Path]:
        """The best path of each prompt, a finished one if there is any."""
        return [max(paths, key=lambda p: (p.finished, p.score)) for paths in self.paths]


def beam_search_steps(
    steps: Steps,
    prompts: Sequence[Sequence[int]],
    value: Value,
    *,
    beams: int,
    expand: int,
    generator: torch.Generator | None = None,
) -> Found:
    """Beam search over steps, led by a verifier (Snell et al. 2024, §5).

    Every unfinished path is continued by `expand` sampled steps; of all that a prompt then has, the
    `beams` best stay. The first round samples `beams` · `expand`, so every round costs the same.

    Raises:
        ValueError: fewer than one beam or continuation, or what the policy cannot take.
    """
    _at_least_one(beams=beams, expand=expand)
    found = Found([[Path()] for _ in prompts])
    for round_ in range(steps.max_steps):
        open_ = [(p, path) for p, ps in enumerate(found.paths) for path in ps if not path.finished]
        if not open_:
            break
        n = expand * beams if round_ == 0 else expand
        grown = _grow(steps, prompts, open_, value, n, generator, found)
        for p, paths in enumerate(found.paths):
            kept = {path.tokens: path for path in paths if path.finished}
            found.paths[p] = sorted([*kept.values(), *grown.get(p, [])], key=_by_score)[:beams]
    return found


def best_first_search(
    steps: Steps,
    prompts: Sequence[Sequence[int]],
    value: Value,
    *,
    expand: int,
    max_rounds: int,
    generator: torch.Generator | None = None,
) -> Found:
    """Tree search: always continue the most promising path, and go back when it disappoints.

    Each round the best unfinished path of a prompt gets `expand` new steps; it is done with. A
    prompt is through as soon as its best path is a finished one, so easy prompts cost little. The
    value must not rise along a path, as a product of chances does not (best-first search, with the
    steps as nodes as in Yao et al. 2023, *Tree of Thoughts*).

    Raises:
        ValueError: fewer than one continuation or round, or what the policy cannot take.
    """
    _at_least_one(expand=expand, max_rounds=max_rounds)
    found = Found([[Path()] for _ in prompts])
    for _ in range(max_rounds):
        heads = [(p, min(paths, key=_by_score)) for p, paths in enumerate(found.paths)]
        open_ = [(p, path) for p, path in heads if not path.finished and _short(path, steps)]
        if not open_:
            break
        grown = _grow(steps, prompts, open_, value, expand, generator, found)
        for p, head in open_:
            found.paths[p] = [path for path in found.paths[p] if path is not head] + grown[p]
    for paths in found.paths:
        paths.sort(key=_by_score)
    return found


def force_budget(
    policy: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    at_most: int,
    end_of_thinking: int,
    stop_tokens: Sequence[int],
    max_answer_tokens: int,
    wait: Sequence[int] = (),
    n_waits: int = 0,
    sampler: Sampler | None = None,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Let the policy think for no more than `at_most` tokens, or longer than it would.

    When the budget is used up, `end_of_thinking` is put into its mouth and it must answer; when it
    wants to stop sooner, that token is replaced by `wait`, up to `n_waits` times (*budget forcing*:
    Muennighoff et al. 2025, s1, §3.1). `wait` counts as thinking.

    Returns:
        thoughts, `end_of_thinking` and answer of each prompt, without the stop token.

    Raises:
        ValueError: a negative budget, or waits without anything to say instead.
    """
    if at_most < 0 or n_waits < 0 or (n_waits and not wait):
        raise ValueError(
            f"at_most={at_most}, n_waits={n_waits}, wait={list(wait)}: expected at least 0 each, "
            "and a token to wait with"
        )
    stops = (end_of_thinking, *stop_tokens)
    sampling = {"sampler": sampler, "generator": generator}
    thoughts: list[list[int]] = [[] for _ in prompts]
    for round_ in range(n_waits + 1):
        if round_:
            thoughts = [(thought + list(wait))[:at_most] for thought in thoughts]
        # Rows with the same budget left go together; who has none has been told to stop.
        for left in sorted({at_most - len(thought) for thought in thoughts} - {0}):
            rows = [row for row, thought in enumerate(thoughts) if at_most - len(thought) == left]
            more = generate(
                policy,
                [[*prompts[row], *thoughts[row]] for row in rows],
                max_new_tokens=left,
                stop_tokens=stops,
                **sampling,
            )
            for row, tokens in zip(rows, more, strict=True):
                thoughts[row] = thoughts[row] + tokens
    said = [[*thought, end_of_thinking] for thought in thoughts]
    answers = generate(
        policy,
        [[*prompt, *thought] for prompt, thought in zip(prompts, said, strict=True)],
        max_new_tokens=max_answer_tokens,
        stop_tokens=stop_tokens,
        **sampling,
    )
    return [thought + answer for thought, answer in zip(said, answers, strict=True)]


def _grow(
    steps: Steps,
    prompts: Sequence[Sequence[int]],
    open_: Sequence[tuple[int, Path]],
    value: Value,
    n: int,
    generator: torch.Generator | None,
    found: Found,
) -> dict[int, list[Path]]:
    """n sampled steps after every open path, without repeats, valued in one batch: by prompt."""
    sampled = rollout(
        steps.policy,
        [[*prompts[p], *path.tokens] for p, path in open_],
        max_new_tokens=steps.max_step_tokens,
        stop_tokens=(*steps.step_ends, *steps.stop_tokens),
        n_samples=n,
        temperature=steps.temperature,
        generator=generator,
    )
    found.n_tokens += int(sampled.mask.sum())
    new: dict[tuple[int, Tokens], None] = {}  # keeps the order, drops the repeats
    for row, actions in enumerate(sampled.actions):
        p, path = open_[row // n]
        new[p, path.tokens + tuple(actions)] = None
    scores = value([prompts[p] for p, _ in new], [tokens for _, tokens in new]).tolist()
    grown: dict[int, list[Path]] = {}
    for (p, tokens), score in zip(new, scores, strict=True):
        path = Path(tokens, score, finished=tokens[-1] in steps.stop_tokens)
        grown.setdefault(p, []).append(path)
    return grown


def _by_score(path: Path) -> float:
    return -path.score


def _short(path: Path, steps: Steps) -> bool:
    return len(path.tokens) < steps.max_steps * steps.max_step_tokens


def _at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name}={number}: expected at least 1")
