"""Checks for the exercises of lesson 13. Each names the mistake it recognises.

B rows, T tokens, H heads, D channels of a head, V vocabulary.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_type,
    assert_unchanged,
    refuses,
)
from minillm.data.packing import IGNORE
from minillm.data.repeats import repeats
from minillm.evaluate.heads import followers_of_the_same, prefix_matching_score


def prefix_score(student: Callable, *, seed: int = 0) -> None:
    """Random maps over rows that repeat, with doubled tokens among them."""
    example = torch.tensor([7, 2, 9, 7, 2])
    weights = torch.arange(25.0).view(5, 5) / 100
    weights[3, 1], weights[4, 2] = 0.8, 0.4
    assert_type(student(weights, example), float, "your score")
    assert_close(
        student(weights, example),
        0.6,
        name="the example's score",
        mistakes=_wrong_scores(weights, example),
    )
    random = torch.Generator().manual_seed(seed)
    tokens = repeats(1, 17, 6, (5, 5), random).tokens[0]
    tokens[9] = tokens[8]
    weights = (torch.rand(17, 17, generator=random) + 0.1).tril()
    weights /= weights.sum(dim=1, keepdim=True)
    assert_close(
        student(weights, tokens),
        prefix_matching_score(weights[None, None, None], tokens[None]).item(),
        name="your score",
        mistakes=_wrong_scores(weights, tokens),
    )
    doubled = torch.tensor([5, 5, 5])
    assert_close(
        student(torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]]), doubled),
        0.3,
        name="your score for [5, 5, 5]",
        mistakes={"you count a token as its own follower: s must be smaller than t": 0.65},
    )
    refuses(student, torch.eye(3), torch.tensor([1, 2, 3]), words="repeat")
    assert_unchanged(student, weights, tokens, name="prefix_score")


def _wrong_scores(weights: Tensor, tokens: Tensor) -> dict[str, float]:
    followers = followers_of_the_same(tokens[None])[0]
    same = (tokens[:, None] == tokens).tril(-1)
    with_itself = followers.clone()
    with_itself[1:] |= torch.diag_embed(tokens[1:] == tokens[:-1], 1)[:-1]

    def mean(places: Tensor, among: Tensor | None = None) -> float:
        among = places if among is None else among
        return ((weights * places).sum(1)[among.any(1)].mean()).item()

    latest = torch.zeros_like(followers)
    for t in followers.any(1).nonzero().flatten().tolist():
        latest[t, followers[t].nonzero().max()] = True
    average = (weights * followers).sum() / followers.sum()
    return {
        "you look at the same token itself; an induction head looks at the one behind it": mean(
            same
        ),
        "you look at the token before the same token; it is the one behind it": mean(
            torch.cat((same[:, 1:], same[:, :1] & False), dim=1)
        ),
        "you count a token as its own follower: s must be smaller than t": mean(with_itself),
        "you count only the latest place; add up the weights on all of them": mean(latest),
        "you average over pairs; add up the places of a position, then average positions": (
            average.item()
        ),
        "you average over all positions; only those count that have such a place": (
            (weights * followers).sum().item() / len(tokens)
        ),
        "your rows and columns are swapped: row t holds where t looks": (
            (weights.T * followers).sum(1)[followers.any(1)].mean().item()
        ),
    }


def without(student: Callable, *, seed: int = 0) -> None:
    """A linear layer between heads of odd size: inside the block, after it, and after an error."""
    random = torch.Generator().manual_seed(seed)
    layer, (B, T, H, D) = nn.Linear(15, 4), (2, 3, 5, 3)
    mixed = torch.randn(B, T, H * D, generator=random)
    off = [1, 4]
    by_head = mixed.view(B, T, H, D)
    silent = by_head.clone()
    silent[:, :, off] = 0
    by_channel = mixed.view(B, T, D, H).clone()
    by_channel[..., off] = 0
    kept = torch.zeros_like(by_head)
    kept[:, :, off] = by_head[:, :, off]
    first = by_head.clone()
    first[:, :, off[:1]] = 0
    right, whole = layer(silent.flatten(2)), layer(mixed)
    before = mixed.clone()
    with student(layer, off, H):
        inside = layer(mixed)
    assert_close(
        inside,
        right,
        name="the output inside the block",
        mistakes={
            "nothing happens: is your hook registered, and does it return the new input?": whole,
            "you silence the other heads": layer(kept.flatten(2)),
            "your heads are H channels apart; those of one head lie side by side": layer(
                by_channel.flatten(2)
            ),
            "only one of the heads is silent": layer(first.flatten(2)),
            "you changed the output: use a hook on the input (register_forward_pre_hook)": (
                torch.zeros_like(whole)
            ),
        },
    )
    assert_close(
        mixed,
        before,
        name="the caller's input, which you change in place: clone it",
        rtol=0,
        atol=0,
    )
    assert_close(
        layer(mixed), whole, name="the output after the block",
        mistakes={"your hook stays after the block: remove it": right},
    )  # fmt: skip
    try:
        with student(layer, off, H):
            raise KeyError("an error inside the block")
    except KeyError:
        pass
    else:
        raise AssertionError("your block swallows errors: do not return from finally")
    assert_close(
        layer(mixed), whole, name="the output after an error inside the block",
        mistakes={"your hook stays if an error leaves the block: use try … finally": right},
    )  # fmt: skip
    refuses(_enter(student), layer, [5], H, words="head")
    refuses(_enter(student), layer, [-1], H, words="head")


def _enter(student: Callable) -> Callable:
    def without(*args) -> None:
        with student(*args):
            pass

    return without


def three_metrics(student: Callable, *, seed: int = 0) -> None:
    """Ragged rows, one of them all right and one of them empty."""
    logits, targets, counted = _ragged_answers(seed)
    answer = student(logits, targets)
    assert_type(answer, tuple, "your result")
    for number, name in zip(answer, ("loss", "accuracy", "exact"), strict=True):
        assert_type(number, float, f"your {name}")
    _check_loss(answer[0], logits, targets, counted)
    hits = logits.argmax(-1) == targets
    shares = [row[c].float().mean().item() for row, c in zip(hits, counted, strict=True) if c.any()]
    assert_close(
        answer[1],
        hits[counted].float().mean().item(),
        name="your accuracy",
        mistakes={
            "targets of −100 count as mistakes in your accuracy": hits.float().mean().item(),
            "your accuracy is an average of rows; take all counted tokens together": (
                sum(shares) / len(shares)
            ),
        },
    )
    _check_exact(answer[2], hits, counted, shares, accuracy=answer[1])
    refuses(student, logits, torch.full_like(targets, IGNORE), words="targets")


def _ragged_answers(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, T, V), targets (B, T) and which of them count (B, T)."""
    random = torch.Generator().manual_seed(seed)
    B, T, V = 6, 5, 7
    logits = torch.randn(B, T, V, generator=random)
    best = logits.argmax(-1)
    right = torch.rand(B, T, generator=random) < 0.5
    right[:2] = True
    right[2:4, 1] = False
    counted = torch.arange(T) < torch.tensor([5, 3, 4, 2, 0, 3])[:, None]
    targets = torch.where(right, best, (best + 1) % V).masked_fill(~counted, IGNORE)
    return logits, targets, counted


def _check_loss(answer: float, logits: Tensor, targets: Tensor, counted: Tensor) -> None:
    rows = [(logits[b, c], targets[b, c]) for b, c in enumerate(counted) if c.any()]
    n = counted.sum().item()
    loss = F.cross_entropy(logits[counted], targets[counted]).item()
    by_row = sum(F.cross_entropy(*row).item() for row in rows) / len(rows)
    assert_close(
        answer,
        loss,
        name="your loss",
        mistakes={
            "your loss is an average of rows; short rows weigh too much": by_row,
            "your loss is in bits; use nats": loss / math.log(2),
            "your loss is a sum; divide by the counted tokens": loss * n,
            "your loss is divided by all tokens, counted or not": loss * n / targets.numel(),
        },
    )


def _check_exact(
    answer: float, hits: Tensor, counted: Tensor, shares: list[float], accuracy: float
) -> None:
    """`shares`: of right tokens in each row that has a counted one."""
    exact = sum(share == 1 for share in shares) / len(shares)
    assert_close(
        answer,
        exact,
        name="your exact",
        mistakes={
            "targets of −100 count as mistakes: no short row can be exact": (
                hits.all(1)[counted.any(1)].float().mean().item()
            ),
            "targets of −100 count as mistakes, and rows without a counted token as rows": (
                hits.all(1).float().mean().item()
            ),
            "a row without a counted token is left out; yours counts it as right": (
                (hits | ~counted).all(1).float().mean().item()
            ),
            "your exact is the accuracy; all tokens of a row must be right": accuracy,
            "one right token makes your row exact; all must be right": (
                sum(share > 0 for share in shares) / len(shares)
            ),
            "a row without a counted token is left out; yours counts it as wrong": (
                exact * len(shares) / len(hits)
            ),
        },
    )


def fixed_accuracy(student: Callable, *, seed: int = 0) -> None:
    """Rows with lags of their own: an echo scores nothing, and a copy everything."""
    random = torch.Generator().manual_seed(seed)
    B, T, V = 7, 13, 11
    lags = torch.tensor([3, 6, 4, 7, 5, 2, 9])
    segments = torch.randint(V, (B, 9), generator=random)
    tokens = segments.gather(1, torch.arange(T) % lags[:, None])
    following = segments.gather(1, torch.arange(1, T + 1) % lags[:, None])
    echo = F.one_hot(tokens, V).float()
    half = F.one_hot(
        torch.where(torch.rand(B, T, generator=random) < 0.6, following, tokens), V
    ).float()
    assert_type(student(half, tokens, lags), float, "your accuracy")
    for name, logits in (("a model that echoes its input", echo), ("a half-right model", half)):
        guesses = logits.argmax(-1)
        right, places = guesses[:, :-1] == tokens[:, 1:], torch.arange(T - 1)
        counted = places >= lags[:, None]
        by_row = torch.stack([r[c].float().mean() for r, c in zip(right, counted, strict=True)])
        assert_close(
            student(logits, tokens, lags),
            right[counted].float().mean().item(),
            name=f"your accuracy of {name}",
            mistakes={
                "the bug is still there: the guess at t is for the token at t + 1": (
                    (guesses == tokens)[torch.arange(T) >= lags[:, None]].float().mean().item()
                ),
                "you compare with the token before; the guess at t is for t + 1": (
                    (guesses[:, 1:] == tokens[:, :-1])[counted].float().mean().item()
                ),
                "you count from t = lag − 1, where what follows is not known yet": (
                    right[places >= lags[:, None] - 1].float().mean().item()
                ),
                "you count from t = lag + 1 on; at t = lag the next token is known already": (
                    right[places > lags[:, None]].float().mean().item()
                ),
                "you count every position; before the lag nothing can be known": (
                    right.float().mean().item()
                ),
                "you average over rows; take all counted guesses together": by_row.mean().item(),
                "one lag does not fit all rows": right[:, lags.max() :].float().mean().item(),
            },
        )


def questions_needed(
    student: Callable, needed: int, real: str, reason: str, *, seed: int = 0
) -> None:
    """Numbers of questions against the formula, and the judgement."""
    assert_type(student(0.5, 1), int, "your number of questions")
    random = torch.Generator().manual_seed(seed)
    for accuracy in (0.5, 0.74, *(0.6 + 0.3 * torch.rand(3, generator=random)).tolist()):
        for n_tokens, certainty in ((1, 0.95), (6, 0.9)):
            solved = accuracy**n_tokens
            exact = math.log(1 - certainty) / math.log(1 - solved)
            right = math.ceil(exact)
            mistakes = {
                "you round down: then the certainty is not reached": math.floor(exact),
                "all tokens of a question must be right: take the power": math.ceil(
                    math.log(1 - certainty) / math.log(1 - accuracy)
                ),
                "you give the mean waiting time, 1/p; that is reached in 63% of cases": math.ceil(
                    1 / solved
                ),
                "your number is certain to fail: use 1 − certainty": math.ceil(
                    math.log(certainty) / math.log(1 - solved)
                ),
                "you ask how long until a failure; take the chance that all fail": math.ceil(
                    math.log(1 - certainty) / math.log(solved)
                ),
            }
            assert_equal(
                student(accuracy, n_tokens, certainty),
                right,
                name=f"questions_needed({accuracy:.3f}, {n_tokens}, {certainty})",
                mistakes={text: n for text, n in mistakes.items() if n != right},
            )
    assert_equal(student(1.0, 20), 1, name="questions_needed(1.0, 20)")
    refuses(student, 0.0, 3, words="token_accuracy")
    refuses(student, 1.2, 3, words="token_accuracy")
    assert_equal(
        needed,
        math.ceil(math.log(0.05) / math.log(1 - 0.74**20)),
        name="needed",
        mistakes={"needed is for 20 tokens, not for one": 3},
    )
    assert_equal(
        real,
        "B",
        name="real",
        mistakes={"raise the token accuracies of A to the power of 20, and compare": "A"},
    )
    assert_equal(
        reason,
        "b",
        name="reason",
        mistakes={
            "(a): exact match may be just what you need; it only hides what comes before": "a",
            "(c): the size of a jump proves nothing: from 0.90 to 0.99 of 20 tokens right, exact "
            "match jumps from 0.12 to 0.82": "c",
        },
    )
