"""Checks for the exercises of lesson 27. Each names the mistake it recognises.

B responses, T time.
"""

import random
from collections.abc import Callable
from itertools import combinations

import torch
import torch.nn.functional as F

from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_same_gradients,
    assert_shape,
    assert_type,
    refuses,
)
from minillm.evaluate.passk import best_of_k, pass_at_k
from minillm.evaluate.search import vote

_ABSTAINS = "no answer wins: None is nobody's vote"


def mean_pass_at_k(student: Callable, *, seed: int = 0) -> None:
    """Against the package, for counts with none, some and all right."""
    dice = random.Random(seed)
    assert_type(student([1, 0], 3, 2), float, "your mean")
    for n, k in ((3, 2), (10, 1), (10, 4), (12, 12)):
        counts = [0, n, 1, *(dice.randint(0, n) for _ in range(4))]

        def mean(rate: Callable, counts: list[int] = counts) -> float:
            return sum(map(rate, counts)) / len(counts)

        right = mean(lambda c, n=n, k=k: pass_at_k(n, c, k))
        assert_close(
            student(counts, n, k),
            right,
            name=f"your mean for n={n}, k={k}",
            mistakes={
                "that is the chance that none is right: take it from 1": 1 - right,
                "you put the rate c/n into 1 − (1 − c/n)^k, which is biased: count subsets": mean(
                    lambda c, n=n, k=k: 1 - (1 - c / n) ** k
                ),
                "you pool all samples: the mean of pass@k is not pass@k of the mean": pass_at_k(
                    n, round(sum(counts) / len(counts)), k
                ),
                "you count the subsets of right samples; count those of wrong ones": 1
                - mean(lambda c, n=n, k=k: 1 - pass_at_k(n, n - c, k)),
                "you add up the problems; divide by how many there are": right * len(counts),
                "that is the share of problems with any right sample among all n": mean(
                    lambda c: float(c > 0)
                ),
            },
        )
    refuses(student, [1], 3, 4, words="k")
    refuses(student, [1], 3, 0, words="k")


def process_reward(student: Callable, *, seed: int = 0) -> None:
    """Values, gradients and tiny chances, with ragged masks and a row without steps."""
    generator = torch.Generator().manual_seed(seed)
    odds = 2 * torch.randn(3, 5, generator=generator) + 0.5
    mask = torch.tensor([[True] * 4 + [False], [False, True, True, False, False], [False] * 5])
    steps = F.logsigmoid(odds)
    right = steps.where(mask, 0.0).sum(1)
    answer = student(odds, mask)
    assert_shape(answer, (3,), "your reward")
    assert_close(
        answer,
        right,
        name="your reward",
        mistakes={
            "your reward is the chance itself; its logarithm is asked for": right.exp(),
            "you average the steps: one wrong step is all it takes, so add the logarithms": (
                right / mask.sum(1).clamp(min=1)
            ),
            "you also count places where the mask is False": steps.sum(1),
            "your mask is upside down: True is a step": steps.where(~mask, 0.0).sum(1),
            "you add up the log-odds: turn them into chances first": odds.where(mask, 0.0).sum(1),
            "you add up chances; multiply them, or add their logarithms": (
                odds.sigmoid().where(mask, 0.0).sum(1)
            ),
            "you take the worst step only: the product asks that all are right": (
                steps.where(mask, 0.0).amin(1)
            ),
            "you set the log-odds to 0 where there is no step: that is a chance of one half": (
                F.logsigmoid(odds.where(mask, 0.0)).sum(1)
            ),
        },
    )
    tiny = student(torch.full((1, 3), -200.0), torch.ones(1, 3, dtype=torch.bool))
    if not torch.isfinite(tiny).all():
        raise AssertionError(
            "your reward is not finite for log-odds of −200: use logsigmoid, not log of sigmoid"
        )
    assert_close(tiny, torch.tensor([-600.0]), name="your reward for log-odds of −200")
    assert_same_gradients(
        lambda x: student(x, mask),
        lambda x: F.logsigmoid(x).where(mask, 0.0).sum(1),
        (odds,),
        name="process_reward",
    )
    refuses(student, odds, mask[:, :4], words="mask")


def pick_of_k(student: Callable, *, seed: int = 0) -> None:
    """Against the package's formula, on scores that help, mislead, or say nothing."""
    assert_close(
        student([False, True, False], [0.9, 0.8, 0.1], 2),
        1 / 3,
        name="your share for the example",
        mistakes={
            "that is pass@k: it asks whether any sample of the subset is right": 2 / 3,
            "you pick the lowest score": 1 / 3 + 1 / 3,
            "you look at all n samples, not at subsets of k": 0.0,
        },
    )
    dice = random.Random(seed)
    for n, k in ((6, 1), (6, 3), (7, 4), (7, 7)):
        right = [dice.random() < 0.4 for _ in range(n - 1)] + [True]
        dice.shuffle(right)
        scores = [dice.random() for _ in range(n)]

        def mean(rate: Callable, n: int = n, k: int = k) -> float:
            return sum(map(rate, combinations(range(n), k))) / len(list(combinations(range(n), k)))

        values = torch.tensor([scores], dtype=torch.float64)
        assert_close(
            student(right, scores, k),
            best_of_k(torch.tensor([right]), values, k),
            name=f"your share for n={n}, k={k}",
            mistakes={
                "that is pass@k: it asks whether any sample of the subset is right": mean(
                    lambda s, right=right: any(right[i] for i in s)
                ),
                "you pick the lowest score": mean(
                    lambda s, right=right, scores=scores: right[min(s, key=lambda i: scores[i])]
                ),
                "that is the mean of all samples: pick one of each subset": sum(right) / n,
                "you look at all n samples, not at subsets of k": float(
                    right[scores.index(max(scores))]
                ),
                "your count is not divided by the number of subsets": mean(
                    lambda s, right=right, scores=scores: right[max(s, key=lambda i: scores[i])]
                )
                * len(list(combinations(range(n), k))),
            },
        )


def fixed_vote(student: Callable, *, seed: int = 0) -> None:
    """Ties, abstentions and nobody at all."""
    if student(["7", None, None, "3", "7", None]) is None:
        raise AssertionError(_ABSTAINS)
    dice = random.Random(seed)
    for _ in range(30):
        answers = [dice.choice(["3", "5", "11", "x", None]) for _ in range(7)]
        expected = vote(answers)
        given = student(answers)
        if expected is None:
            continue
        if given is None:
            raise AssertionError(_ABSTAINS)
        counts = {answer: answers.count(answer) for answer in answers if answer is not None}
        top = [answer for answer, n in counts.items() if n == max(counts.values())]
        assert_equal(
            given,
            expected,
            name=f"your vote for {answers}",
            mistakes={
                "of equally frequent answers you take another than the first given": given
                if given in top
                else object(),
                "you take the rarest answer": min(counts, key=counts.get),
                "you take the first answer, however frequent": next(iter(counts)),
            },
        )
    for nobody in ([], [None, None]):
        try:
            given = student(nobody)
        except (ValueError, TypeError) as error:
            raise AssertionError(
                f"your vote fails for {nobody} ({type(error).__name__}): return None if nobody "
                "answered"
            ) from None
        if given is not None:
            raise AssertionError(f"your vote for {nobody} is {given!r}; expected None")


def allocate(student: Callable, gain: float, unsolved: int, reason: str, *, seed: int = 0) -> None:
    """Greedy shares on random rates, and the judgement."""
    dice = random.Random(seed)
    tests = [([0.9, 0.5], 3), ([0.5, 0.5, 0.5], 4), ([0.9, 0.5, 0.1, 0.0], 12)]
    tests += [([round(dice.random(), 2) for _ in range(5)], 11)]
    for rates, budget in tests:
        right = _shares(rates, budget)
        answer = student(list(rates), budget)
        assert_type(answer, list, "your shares")
        wrong = {
            "you give the same to every question": [budget // len(rates)] * len(rates),
            "you give all to the likeliest question; its gain falls with every sample": [
                budget * (i == rates.index(max(rates))) for i in range(len(rates))
            ],
            "your gain is that of all its samples together; count what one more adds": _shares(
                rates, budget, lambda r, n: 1 - (1 - r) ** (n + 1)
            ),
            "you favour the question that is likeliest still unsolved; it may gain nothing": (
                _shares(rates, budget, lambda r, n: (1 - r) ** n)
            ),
            "your powers are off by one: after n samples one more gains r (1 − r)ⁿ": _shares(
                rates, budget, lambda r, n: r * (1 - r) ** (n + 1)
            ),
            "of equal gains the first question comes first": _shares(rates, budget, last=True),
        }
        if answer != right and sum(answer) != budget:
            raise AssertionError(f"your shares add up to {sum(answer)}, the budget is {budget}")
        assert_equal(
            answer,
            right,
            name=f"your shares for {rates} and a budget of {budget}",
            mistakes={message: shares for message, shares in wrong.items() if shares != right},
        )
    rates = [0.9, 0.5, 0.1, 0.0]
    best = sum((1 - r) ** 3 - (1 - r) ** n for r, n in zip(rates, _shares(rates, 12), strict=True))
    assert_close(
        gain,
        best,
        name="gain",
        mistakes={
            "gain is what three samples for each lose against your shares; mind the sign": -best,
            "gain is a number of questions; do not divide by four": best / 4,
        },
    )
    assert_equal(unsolved, 3, name="unsolved", mistakes={"places are counted from 0": 4})
    assert_equal(
        reason,
        "b",
        name="reason",
        mistakes={
            "(a): a question with rate 0 is never solved, however many samples": "a",
            "(c): the likeliest question is solved by its first sample nine times of ten": "c",
        },
    )


def _shares(
    rates: list[float],
    budget: int,
    gain: Callable[[float, int], float] = lambda r, n: r * (1 - r) ** n,
    last: bool = False,
) -> list[int]:
    counts = [0] * len(rates)
    for _ in range(budget):
        gains = [gain(r, n) for r, n in zip(rates, counts, strict=True)]
        places = [i for i, value in enumerate(gains) if value == max(gains)]
        counts[places[-1 if last else 0]] += 1
    return counts
