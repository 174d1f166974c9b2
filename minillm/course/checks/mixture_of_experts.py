"""Checks for the exercises of lesson 09. Each names the mistake it recognises.

N tokens, C channels, E experts, k experts a token.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_same_gradients,
    assert_shape,
    assert_type,
    assert_unchanged,
    refuses,
)
from minillm.model import moe


def top_k_gate(student: Callable, *, seed: int = 0) -> None:
    """Choices and weights against the package's router, and the gradient of the weights."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, 5, generator=random) * 2
    for k in (2, 1, 5):
        answer = student(logits, k)
        assert_type(answer, tuple, "your result")
        weights, chosen = answer
        assert_shape(weights, (7, k), "your weights")
        assert_shape(chosen, (7, k), "your chosen")
        right = logits.argsort(-1, descending=True)[:, :k]
        assert_close(
            chosen,
            right,
            name="your chosen",
            mistakes={
                "your experts are not sorted: the best must come first": right.sort(-1).values,
                "you chose the worst experts, not the best": logits.argsort(-1)[:, :k],
            },
        )
        assert_close(
            weights,
            _gate(logits, k),
            name=f"your weights for k={k}",
            mistakes={
                "you did not renormalise: the weights of a token must sum to 1": (
                    logits.softmax(-1).gather(-1, right)
                ),
                "you return logits, not shares: where is the softmax?": logits.gather(-1, right),
                "your softmax runs over the tokens; each row must share out the experts (dim=-1)": (
                    lambda right=right: _normalised(logits.softmax(0).gather(-1, right))
                ),
                "your weights sum to 1 over the tokens: sum over the chosen experts of each": (
                    lambda right=right: _normalised(logits.softmax(-1).gather(-1, right), dim=0)
                ),
            },
        )
    assert_same_gradients(
        lambda x: student(x, 3)[0], lambda x: _gate(x, 3), (logits,), name="the weights"
    )
    assert_unchanged(lambda x: student(x, 2), logits, name="top_k_gate")
    refuses(student, logits, 0, words="k")
    refuses(student, logits, 6, words="k")


def _normalised(weights: Tensor, dim: int = -1) -> Tensor:
    return weights / weights.sum(dim, keepdim=True)


def _gate(logits: Tensor, k: int) -> Tensor:
    return _normalised(logits.softmax(-1).topk(k, dim=-1).values)


def balance_loss(student: Callable, *, seed: int = 0) -> None:
    """Value and gradient against the package's, with an expert that nobody chose."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(11, 6, generator=random)
    logits[:, 5] = -4.0  # never among the best
    probabilities = logits.softmax(-1)
    chosen = probabilities.topk(2, dim=-1).indices
    f = moe.tokens_per_expert(chosen, 6) / 11
    P = probabilities.mean(0)
    right = moe.balance_loss(probabilities, chosen, 6)
    answer = student(probabilities, chosen)
    assert_shape(answer, (), "your loss")
    assert_close(
        answer,
        right,
        name="your loss",
        mistakes={
            "you forgot the factor E": right / 6,
            "your f sum to 1; divide the counts by N tokens, not by N·k choices": right / 2,
            "N times too large: divide the counts by N, and take the mean of the probabilities": (
                right * 11
            ),
            "you multiply P with P: f must count the choices": 6 * (P * P).sum(),
            "you multiply f with f: P must be the mean probability": 6 * (f * f).sum(),
            "you count first choices only: every one of the k choices counts": (
                6 * (moe.tokens_per_expert(chosen[:, :1], 6) / 11 * P).sum()
            ),
        },
    )
    assert_same_gradients(
        lambda p: student(p, chosen),
        lambda p: moe.balance_loss(p, chosen, 6),
        (probabilities,),
        name="balance_loss",
    )
    refuses(student, probabilities, chosen[:5], words="tokens")


def keep_within(student: Callable, *, seed: int = 0) -> None:
    """Who is kept, where the limit is no whole number and where an expert is empty."""
    random = torch.Generator().manual_seed(seed)
    chosen = torch.randint(3, (23,), generator=random)  # expert 3 of 4 stays empty
    for capacity in (1.0, 0.7, 1.3):
        exact = capacity * 23 / 4
        assert_close(
            student(chosen, 4, capacity),
            _kept(chosen, math.ceil(exact)),
            name=f"your answer for capacity {capacity}",
            mistakes={
                "you round the limit down; it must be rounded up": _kept(chosen, int(exact)),
                "your experts take one token too many": _kept(chosen, math.ceil(exact) + 1),
                "your experts keep their last tokens: first come, first served": (
                    lambda exact=exact: _kept(chosen.flip(0), math.ceil(exact)).flip(0)
                ),
                "your limit forgets the number of experts": _kept(chosen, math.ceil(capacity * 23)),
                "your answer is upside down: True means the token is kept": ~_kept(
                    chosen, math.ceil(exact)
                ),
                "you count all tokens, not those of the same expert": (
                    torch.arange(23) < math.ceil(exact)
                ),
            },
        )
    assert_unchanged(lambda c: student(c, 4, 1.0), chosen, name="keep_within")
    refuses(student, chosen, 4, 0.0, words="capacity")


def _kept(chosen: Tensor, limit: int) -> Tensor:
    order, _ = moe.dispatch(chosen[:, None], int(chosen.max()) + 2, limit=limit)
    return torch.zeros(len(chosen), dtype=torch.bool).index_fill(0, order, True)


def fixed_switch(student: Callable, *, seed: int = 1) -> None:
    """The repaired layer: values, and a router that gets its gradient."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(9, 4, generator=random)
    router = torch.randn(5, 4, generator=random)
    experts = torch.randn(5, 4, 4, generator=random)

    def run(x, router, experts, *, weigh=lambda shares, logits: shares, dim=-1):
        logits = x @ router.T
        shares = logits.softmax(dim)
        best = shares.argmax(-1, keepdim=True)
        outputs = torch.einsum("nc,ndc->nd", x, experts[best[:, 0]])
        return weigh(shares, logits).gather(-1, best) * outputs

    assert_close(
        student(x, router, experts),
        run(x, router, experts),
        name="your output",
        mistakes={
            "the bug is still there: a single weight divided by itself is always 1": run(
                x, router, experts, weigh=lambda shares, logits: torch.ones_like(shares)
            ),
            "you weigh by the router's logit; use its probability": run(
                x, router, experts, weigh=lambda shares, logits: logits
            ),
            "your softmax runs over the tokens": run(x, router, experts, dim=0),
        },
    )
    leaf = router.clone().requires_grad_()
    answer = student(x, leaf, experts)
    if not answer.requires_grad:
        raise AssertionError("no gradient reaches the router: it is still dead")
    assert_same_gradients(student, run, (x, router, experts), name="fixed_switch")


def effective_experts(student: Callable, n_effective: float, remedy: str, *, seed: int = 0) -> None:
    """The measurement, on loads with idle experts and k = 2, and the judgement."""
    random = torch.Generator().manual_seed(seed)
    assert_close(
        student(torch.tensor([[0], [1], [0], [1]]), 4),
        2.0,
        name="the effective experts of 0 1 0 1",
    )
    chosen = torch.randint(5, (40, 2), generator=random)  # experts 5 and 6 of 7 stay idle
    yours = student(chosen, 7)
    assert_type(yours, float, "your number of effective experts")
    shares = moe.tokens_per_expert(chosen, 7) / 80
    entropy = torch.special.entr(shares).sum()
    assert_close(
        yours,
        entropy.exp().item(),
        name="your number of effective experts",
        mistakes={
            "you return the entropy; take e to its power": entropy.item(),
            "your logarithm has base 2 and your power base e": (entropy / math.log(2)).exp().item(),
            "your shares do not sum to 1: divide the counts by all N·k choices": (
                torch.special.entr(shares * 2).sum().exp().item()
            ),
            "you count the first choice only": (
                torch.special.entr(moe.tokens_per_expert(chosen[:, :1], 7) / 40).sum().exp().item()
            ),
            "your entropy has the wrong sign": (-entropy).exp().item(),
        },
    )
    # Shares of 0.4, 0.3, 0.2 and thirteen of 0.1/13, up to the noise of 4,096 tokens.
    assert_close(n_effective, 4.67, name="n_effective", rtol=0.1)
    assert_equal(
        remedy,
        "b",
        name="remedy",
        mistakes={
            "(a) drops the tokens of busy experts; the idle ones still get none": "a",
            "(c) adds experts that will be idle too: nothing makes the router use them": "c",
        },
    )
