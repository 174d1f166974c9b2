"""Checks for the exercises of lesson 26. Each names the mistake it recognises.

P prompts, G answers to each, B rows, T time. Masks bool, True = an action.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from minillm.align.advantages import METHODS, group_advantages
from minillm.align.grpo import grpo_loss
from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_same_gradients,
    assert_shape,
    assert_type,
    assert_unchanged,
    refuses,
)
from minillm.data.packing import IGNORE
from minillm.infer.rollout import response_batch


def advantages(student: Callable, *, seed: int = 0) -> None:
    """All three methods on random rewards, an equal group, and groups of two."""
    random = torch.Generator().manual_seed(seed)
    example = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    graded = torch.randn(3, 5, generator=random) + torch.tensor([[0.0], [4.0], [-2.0]])
    equal = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    for method in METHODS:
        for rewards in (graded, example, equal, graded[:, :2]):
            answer = student(rewards.clone(), method)
            assert_shape(answer, rewards.shape, f"your advantages ({method})")
            assert_close(
                answer,
                group_advantages(rewards, method),
                name=f"your advantages ({method})",
                mistakes=_wrong_advantages(rewards, method),
            )
    assert_unchanged(lambda r: student(r, "grpo"), graded, name="advantages")
    refuses(student, graded, "ppo", words="method")
    refuses(student, graded[:, :1], "dr_grpo", words="two|2")


def _wrong_advantages(rewards: Tensor, method: str) -> dict[str, object]:
    G = rewards.shape[1]
    centred = rewards - rewards.mean(1, keepdim=True)
    std = rewards.std(1, keepdim=True)
    over_all = rewards - rewards.mean()
    wrong = {
        "your mean is that of the whole batch; compare within each group": over_all,
        "your mean and std are those of the whole batch; compare within each group": (
            over_all / (rewards.std() + 1e-4)
        ),
        "your mean runs over the prompts (dim 0); a group is a row": rewards - rewards.mean(0),
        "your signs are turned round: better than the mean is above 0": -group_advantages(
            rewards, method
        ),
    }
    if method == "grpo":
        wrong |= {
            "your std divides by G; divide by G − 1": centred
            / (rewards.std(1, keepdim=True, correction=0) + 1e-4),
            "you divide by the variance, not by the standard deviation": centred / (std**2 + 1e-4),
            "you do not divide by the standard deviation: that is Dr. GRPO": centred,
            "you do not add 1e-4 to the std: a group of equal rewards gives NaN": centred / std,
            "your mean is that of the whole batch, your std is not; both are the group's": (
                over_all / (std + 1e-4)
            ),
            "your std is that of the whole batch; take the group's": centred
            / (rewards.std() + 1e-4),
            "your mean runs over the prompts (dim 0), your std over the group; a group is a row": (
                (rewards - rewards.mean(0)) / (std + 1e-4)
            ),
            "your mean and std run over the prompts (dim 0); a group is a row": lambda: (
                (rewards - rewards.mean(0)) / (rewards.std(0) + 1e-4)
            ),
        }
    if method == "dr_grpo":
        wrong["you divide by the standard deviation; Dr. GRPO does not"] = centred / (std + 1e-4)
    if method == "rloo":
        wrong |= {
            "you take the answer's own reward into the mean: leave it out": centred,
            "you leave the answer out of the sum, and still divide by G": rewards
            - (rewards.sum(1, keepdim=True) - rewards) / G,
            "you divide by G − 1, and still leave the answer in the sum": rewards
            - rewards.sum(1, keepdim=True) / (G - 1),
            "that is GRPO's: RLOO does not divide by the standard deviation": centred
            / (std + 1e-4),
            "you divide by the standard deviation; RLOO does not": centred
            * (G / (G - 1))
            / (std + 1e-4),
        }
    return wrong


def clipped_loss(student: Callable, *, seed: int = 0) -> None:
    """Values and gradients against the package's, with ratios on both sides of the clip."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([1, 6, 3, 4])
    mask = torch.arange(7) < lengths[:, None]
    mask = mask.roll(1, dims=1)
    old = -torch.rand(4, 7, generator=random) - 0.1
    new = old + 0.6 * torch.randn(4, 7, generator=random)
    A = torch.tensor([1.5, -1.0, 0.7, -0.4])
    for by in ("token", "sequence"):
        for clip in (0.2, 0.1):
            answer = student(new, old, A, mask, clip, by)
            assert_shape(answer, (), "your loss")
            assert_close(
                answer,
                grpo_loss(new, old, A, mask, clip=clip, by=by),
                name=f"your loss (by {by}, clip {clip})",
                mistakes=_wrong_losses(new, old, A, mask, clip, by),
            )
        assert_same_gradients(
            lambda new, by=by: student(new, old, A, mask, 0.2, by),
            lambda new, by=by: grpo_loss(new, old, A, mask, by=by),
            (new,),
            name="clipped_loss",
        )
        outside = torch.where(mask, new, float("inf"))
        assert_close(
            student(outside, old, A, mask, 0.2, by),
            grpo_loss(new, old, A, mask, by=by),
            name="your loss with garbage where the mask is False (0 times inf is NaN)",
        )
    leaves = [x.clone().requires_grad_() for x in (new, old, A)]
    student(*leaves, mask, 0.2, "token").backward()
    for leaf, name in zip(leaves[1:], ("the old policy", "the advantages"), strict=True):
        if leaf.grad is not None and leaf.grad.abs().max() > 0:
            raise AssertionError(f"{name} gets a gradient: detach it")
    refuses(student, new, old, A, mask, 0.2, "word", words="by")


def _wrong_losses(
    new: Tensor, old: Tensor, A: Tensor, mask: Tensor, clip: float, by: str
) -> dict[str, Tensor]:
    A = A[:, None]
    ratio = (new - old).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    losses = -torch.minimum(ratio * A, clipped * A)

    def average(x: Tensor, by: str = by) -> Tensor:
        x = x.where(mask, 0.0)
        return x.sum() / mask.sum() if by == "token" else (x.sum(1) / mask.sum(1)).mean()

    other = "sequence" if by == "token" else "token"
    return {
        f"you average by {other} where {by} was asked for": average(losses, other),
        "your sign is turned round: a loss is minimised, an advantage maximised": average(-losses),
        "you take the maximum: the clipped and the plain term must be combined by their minimum": (
            average(-torch.maximum(ratio * A, clipped * A))
        ),
        "you always use the clipped ratio; take the minimum with the plain one": average(
            -clipped * A
        ),
        "you never clip": average(-ratio * A),
        "your ratio is upside down: new over old": average(
            -torch.minimum(A / ratio, (1 / ratio).clamp(1 - clip, 1 + clip) * A)
        ),
        "you use the difference of the log-probs as the ratio: exponentiate it": average(
            -torch.minimum((new - old) * A, (new - old).clamp(1 - clip, 1 + clip) * A)
        ),
        "you count positions where the mask is False": losses.mean(),
        "you divide by all positions, not by the number of actions": losses.where(mask, 0.0).mean(),
        "you do not average over the rows": (losses.where(mask, 0.0).sum(1) / mask.sum(1)).sum(),
    }


def reward(student: Callable, *, seed: int = 0) -> None:
    """Texts that are right, wrong, and right only to a careless reader."""
    digit = str(3 + seed % 5)
    for text in (f"4 1 {digit} #{digit}", f"#{digit}", f"# {digit} ", f"1 #0{digit}"):
        _paid(student, text, digit, True, 1.0, "this is right, and must be paid")
    _paid(student, "#120", "120", True, 1.0, "this is right, and must be paid")
    _paid(student, "#000", "0", True, 1.0, "this is the number 0, and must be paid")
    for text, message in {
        f"4 #{int(digit) + 1}": "this is wrong",
        f"4 1 {digit}": "no answer is declared: a number in the working does not count",
        "": "an empty text is no answer",
        "#": "an empty answer is no answer",
        f"#1 #2 #{digit}": "you pay for a list of guesses: exactly one # may stand in the text",
        f"#{digit} #{digit}": "you pay for a list of guesses: exactly one # may stand in the text",
        f"#{digit} or 9": "what follows # up to the end must be the answer, and nothing else",
        f"#9{digit}": "you look at the last digit only; compare the whole answer",
        f"#{digit}9": "you look at the first digit only; compare the whole answer",
        f"#{digit}.0": "only the digits 0–9 may be paid",
        f"#+{digit}": "only the digits 0–9 may be paid",
        f"#{digit}_0": "only the digits 0–9 may be paid",
        f"#{digit}\n": "only spaces around the answer are forgiven",
        f"#0 {digit}": "only spaces around the answer are forgiven, not one within it",
        f"#{chr(0x0660 + int(digit))}": "digits of other scripts are no ASCII digits",
        f"#{chr(0x2070 + int(digit))}": "a superscript is no ASCII digit",
        "#" + "9" * 6000: "this is wrong",
        "#inf": "this is no number",
    }.items():
        _paid(student, text, digit, True, 0.0, message)
    _paid(student, "#", "0", True, 0.0, "an empty answer is no answer, not even 0")
    _paid(
        student, f"4 1 {digit} #{digit}", digit, False, 0.0,
        "you pay for a text that was cut off: it must be finished",
    )  # fmt: skip


def _paid(
    student: Callable, text: str, answer: str, finished: bool, right: float, message: str
) -> None:
    shown = text if len(text) < 40 else f"{text[:20]}… ({len(text)} characters)"
    call = f"reward({shown!r}, {answer!r}, {finished})"
    try:
        value = student(text, answer, finished)
    except NotImplementedError:
        raise
    except Exception as error:
        raise AssertionError(
            f"{call} raises {type(error).__name__}: nothing a policy writes may raise an error"
        ) from None
    assert_type(value, float, f"the value of {call}")
    if value != right:
        raise AssertionError(f"{message}: {call} is {value}; expected {right}")


def fixed_targets(student: Callable, *, seed: int = 0) -> None:
    """Ragged answers, padded with the end token, one of them cut off and one empty but for it."""
    random = torch.Generator().manual_seed(seed)
    end = 1
    prompts = [torch.randint(2, 9, (n,), generator=random).tolist() for n in (2, 4, 1, 3)]
    answers = [torch.randint(2, 9, (n,), generator=random).tolist() for n in (4, 0, 2, 5)]
    answers = [[*a, end] for a in answers[:3]] + answers[3:]
    batch = response_batch(prompts, answers)
    lengths = torch.tensor([len(p) for p in prompts])
    written = lengths + torch.tensor([len(a) for a in answers])
    t = torch.arange(batch.tokens.shape[1])
    tokens = torch.where(t < written[:, None], batch.tokens, end)
    right = batch.targets

    shifted = torch.full_like(tokens, IGNORE)
    shifted[:, :-1] = tokens[:, 1:]
    answering = shifted.where(t >= lengths[:, None] - 1, IGNORE)
    late = shifted.where(t >= lengths[:, None], IGNORE)
    unshifted = tokens.where((t >= lengths[:, None]) & (t < written[:, None]), IGNORE)
    with_prompt = shifted.where(t < written[:, None] - 1, IGNORE)
    mistakes = {
        "the bug is still there: the first end token is an action, the policy chose it": (
            answering.where(answering != end, IGNORE)
        ),
        "you count the padding: only the first end token of a row is an action": answering,
        "you start one late: the prompt's last token is where the first action is chosen": (
            late.where(t < written[:, None] - 1, IGNORE)
        ),
        "you do not shift: position t answers for the token after token t": unshifted,
        "you count the prompt: nobody chose it": with_prompt,
    }
    answer = student(tokens, lengths, end)
    assert_shape(answer, tokens.shape, "your targets")
    assert_close(answer, right, name="your targets", mistakes=mistakes)
    example = student(torch.tensor([[5, 6, 7, 1, 1]]), torch.tensor([2]), 1)
    expected = torch.tensor([[IGNORE, 7, 1, IGNORE, IGNORE]])
    assert_close(example, expected, name="the example's targets")
    assert_unchanged(lambda x, n: student(x, n, end), tokens, lengths, name="fixed_targets")


def share_that_teaches(
    student: Callable, n_small: float, n_large: float, p_best: float, advice: str, *, seed: int = 0
) -> None:
    """The probability against enumeration, and the judgement."""
    random = torch.Generator().manual_seed(seed)
    rates = [0.3, 0.05, *torch.rand(3, generator=random).tolist()]
    for p in rates:
        for G in (2, 3, 8):
            assert_close(
                student(p, G),
                _enumerated(p, G),
                name=f"your share for p={p:.2f}, G={G}",
                mistakes={
                    "you forgot the groups that are all right": 1 - (1 - p) ** G,
                    "you forgot the groups that are all wrong": 1 - p**G,
                    "that is the share of groups that do not teach": p**G + (1 - p) ** G,
                    "that is the chance that exactly one is right": G * p * (1 - p) ** (G - 1),
                },
            )
    assert_close(student(0.0, 4), 0.0, name="your share for p=0")
    assert_close(student(1.0, 4), 0.0, name="your share for p=1")
    refuses(student, 1.5, 4, words="p")
    refuses(student, 0.5, 1, words="G")
    small, large = 16 * _enumerated(0.05, 4), 4 * _enumerated(0.05, 16)
    swapped = "n_small and n_large are swapped: small groups come first"
    for name, value, right, other, n in (
        ("n_small", n_small, small, large, 16),
        ("n_large", n_large, large, small, 4),
    ):
        assert_close(
            value, right, name=name, atol=0.01, rtol=0,
            mistakes={
                "that is the share of groups; multiply by their number": right / n,
                swapped: other,
            },
        )  # fmt: skip
    assert_close(
        p_best, 0.5, name="p_best", atol=0.011,
        mistakes={"where all is wrong, nothing teaches": 0.0, "where all is right, too": 1.0},
    )  # fmt: skip
    assert_equal(
        advice,
        "b",
        name="advice",
        mistakes={
            "(a): luck at a rate of zero takes forever, and one right answer costs all those "
            "samples": "a",
            "(c): where all rewards are equal, there is nothing to divide": "c",
        },
    )


def _enumerated(p: float, G: int) -> float:
    """Add up the probability of every pattern of right and wrong that is not all the same."""
    total = 0.0
    for pattern in range(1, 2**G - 1):
        n_right = pattern.bit_count()
        total += p**n_right * (1 - p) ** (G - n_right)
    return total
