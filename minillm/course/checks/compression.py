"""Checks for the exercises of lesson 21. Each names the mistake it recognises.

N tokens, C columns (inputs of a layer), D rows (its outputs), V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minillm.adapt import distill, low_rank, prune
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


def rank_for_budget(student: Callable, *, seed: int = 0) -> None:
    """Ranks of a decaying spectrum at five budgets and at both ends."""
    assert_type(student(torch.eye(3), 0.5), int, "your rank")
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(20, 24, generator=random) * 0.85 ** torch.arange(24)
    budgets = (0.02, 0.05, 0.1, 0.2, 0.4)
    right = [low_rank.rank_for_error(weight, budget) for budget in budgets]
    assert_equal(
        [student(weight, budget) for budget in budgets],
        right,
        name=f"your ranks at budgets of {budgets}",
        mistakes={
            **_wrong_ranks(weight, budgets),
            "your rank is one too many: rank r loses the squares from place r on": [
                rank + 1 for rank in right
            ],
            "your rank is one too few: rank r loses the squares from place r on": [
                rank - 1 for rank in right
            ],
        },
    )
    example = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    assert_equal([student(example, b) for b in (0.1, 0.4)], [2, 1], name="the example's ranks")
    assert_equal(student(weight, 0.0), 20, name="your rank at a budget of 0")
    assert_equal(
        student(weight, 1.0), 1, name="your rank at a budget of 1",
        mistakes={"your rank may be 0; at least one term must stay": 0},
    )  # fmt: skip
    refuses(student, weight, 1.5, words="budget")
    refuses(student, weight, -0.1, words="budget")


def _wrong_ranks(weight: Tensor, budgets: Sequence[float]) -> dict[str, list[int]]:
    values = torch.linalg.svdvals(weight.double())
    squares = values.square()
    one, total = squares.new_ones(()), squares.sum()

    def ranks(terms: Tensor, whole: Tensor) -> list[int]:
        lost = terms.flip(0).cumsum(0).flip(0)
        return [max(1, int((lost > budget * whole).sum())) for budget in budgets]

    return {
        "you add up singular values; the error adds up their squares": ranks(values, values.sum()),
        "your error is the largest square left out, not the sum of all of them": [
            max(1, int((squares > budget * total).sum())) for budget in budgets
        ],
        "your error is absolute: divide by the sum of all squares": ranks(squares, one),
        "your budget is what stays, not what is lost": [
            max(1, int((squares.cumsum(0) <= budget * total).sum())) for budget in budgets
        ],
    }


def wanda_mask(student: Callable, *, seed: int = 0) -> None:
    """Masks against the package's, with one loud and one silent input."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(9, 13, generator=random)
    inputs = torch.randn(11, 13, generator=random) + 0.3
    inputs[:, 2] *= 9
    inputs[:, 4] *= 0.05
    gram, sizes = inputs.T @ inputs, weight.abs()
    scores = prune.wanda(weight, gram)
    for sparsity in (0.5, 0.3, 0.0):
        answer = student(weight, inputs, sparsity)
        assert_shape(answer, (9, 13), "your mask")
        right = prune.keep_share(scores, sparsity)

        def keep(scores: Tensor, by_row: bool = True, sparsity: float = sparsity) -> Tensor:
            return prune.keep_share(scores, sparsity, by_row)

        rounded_up = prune.keep_share(scores, (int(sparsity * 13) + 1 + 1e-6) / 13)
        wrong = {
            "your mask is upside down: True means the weight stays": ~right,
            "you drop the highest scores": keep(-scores),
            "you score by size alone; multiply by the norm of the input": keep(sizes),
            "you multiply by the sum of the inputs, not by their norm": keep(
                sizes * inputs.sum(0).abs()
            ),
            "you multiply by the squared norm": keep(sizes * gram.diagonal()),
            "you forgot the absolute value: large negative weights matter too": keep(
                weight * gram.diagonal().sqrt()
            ),
            "you compare over the whole matrix; compare within each row": keep(scores, False),
            "you compare within each column; compare within each row": (
                lambda sparsity=sparsity: prune.keep_share(scores.T, sparsity).T
            ),
            "one weight too many goes: round sparsity · C down": rounded_up,
        }
        assert_close(answer, right, name=f"your mask at sparsity {sparsity}", mistakes=wrong)
    assert_unchanged(lambda w, x: student(w, x, 0.5), weight, inputs, name="wanda_mask")
    refuses(student, weight, inputs[:, :12], 0.5, words="columns")


def distillation_loss(student: Callable, *, seed: int = 0) -> None:
    """Value and gradient against the package's, with positions that do not count."""
    random = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, 8, 5, generator=random) * 2
    targets = torch.randint(5, (8,), generator=random)
    targets[torch.tensor([1, 6])] = IGNORE
    counted = targets != IGNORE
    T, weight = 3.0, 0.3
    hard = torch.nn.functional.cross_entropy(s[counted], targets[counted])
    apart = distill.forward_kl(s, t, T)[counted].mean()

    def mixed(soft: Tensor, hard: Tensor = hard, share: float = weight) -> Tensor:
        return (1 - share) * hard + share * soft

    right = distill.distillation_loss(s, t, targets, T, weight)
    answer = student(s, t, targets, T, weight)
    assert_shape(answer, (), "your loss")
    softened = torch.nn.functional.cross_entropy(s[counted] / T, targets[counted])
    cross = -((t / T).softmax(-1) * (s / T).log_softmax(-1)).sum(-1)[counted].mean()
    everywhere = distill.forward_kl(s, t, T)
    assert_close(
        answer,
        right,
        name="your loss",
        mistakes={
            "you forgot T²: the teacher's term fades as the temperature grows": mixed(apart),
            "you multiply by T, not by T²": mixed(T * apart),
            "your divergence is turned round: KL(teacher ‖ student) weighs by the teacher": mixed(
                T**2 * distill.reverse_kl(s, t, T)[counted].mean()
            ),
            "you do not soften the two distributions: divide the logits by T": mixed(
                T**2 * distill.forward_kl(s, t, 1.0)[counted].mean()
            ),
            "you multiply the logits by T; divide": mixed(
                T**2 * distill.forward_kl(s, t, 1 / T)[counted].mean()
            ),
            "your cross-entropy with the text is softened too; leave it at temperature 1": mixed(
                T**2 * apart, softened
            ),
            "your weights are swapped: `weight` belongs to the teacher": mixed(
                T**2 * apart, share=1 - weight
            ),
            "your teacher's term counts positions whose target is -100": mixed(
                T**2 * everywhere.mean()
            ),
            "your teacher's term divides by all positions; divide by those that count": mixed(
                T**2 * apart * counted.sum() / len(counted)
            ),
            "your teacher's term is a cross-entropy: subtract the teacher's own entropy": mixed(
                T**2 * cross
            ),
            "your divergence is averaged over the words; sum over them": mixed(T**2 * apart / 5),
        },
    )
    assert_same_gradients(
        lambda s: student(s, t, targets, T, weight),
        lambda s: distill.distillation_loss(s, t, targets, T, weight),
        (s,),
        name="distillation_loss",
    )
    leaf = t.clone().requires_grad_()
    student(s.clone().requires_grad_(), leaf, targets, T, weight).backward()
    if leaf.grad is not None and leaf.grad.abs().max() > 0:
        raise AssertionError("the teacher gets a gradient: detach its logits, it has to stay")
    refuses(student, s, t, targets, 0.0, weight, words="temperature")


def fixed_step(student: Callable, *, seed: int = 0) -> None:
    """The repaired step, from a momentum that remembers, and from weights that are not zero yet."""
    random = torch.Generator().manual_seed(seed)
    weight, gradient, momentum = torch.randn(3, 4, 6, generator=random)
    mask = torch.rand(4, 6, generator=random) < 0.5
    lr, decay = 0.2, 0.7
    moved = decay * momentum + gradient

    answer = student(weight * mask, gradient, momentum, mask, lr, decay)
    assert_type(answer, tuple, "your result")
    new_weight, new_momentum = answer
    right = (weight - lr * moved) * mask
    bug = decay * momentum + gradient * mask
    assert_close(
        new_weight,
        right,
        name="your weight",
        mistakes={
            "the bug is still there: the momentum remembers gradients from before the pruning": (
                weight * mask - lr * bug
            ),
            "no mask at all: every weight comes back": weight * mask - lr * moved,
            "your mask is upside down: True means the weight stays": (weight * mask - lr * moved)
            * ~mask,
            "you forget the momentum: what is kept must move as before": (weight - lr * gradient)
            * mask,
            "you step uphill: subtract": (weight + lr * moved) * mask,
        },
    )
    assert_close(
        new_momentum,
        moved * mask,
        name="your momentum",
        mistakes={
            "your momentum still holds what the mask leaves out; it must be zero there too": bug,
            "your momentum is not masked; it must be zero where the mask is False": moved,
            "you return the old momentum": momentum,
            "you return the momentum times lr": lr * moved * mask,
        },
    )
    dense, _ = student(weight, gradient, momentum, mask, lr, decay)
    assert_close(
        dense,
        right,
        name="your weight, if it was not zero before",
        mistakes={
            "pruned weights keep what they had; multiply the weight by the mask": (
                weight - lr * moved * mask
            )
        },
    )
    assert_unchanged(
        lambda *x: student(*x, mask, lr, decay), weight, gradient, momentum, name="fixed_step"
    )


def pareto_front(
    student: Callable, n_front: int, choice: str, reason: str, *, seed: int = 0
) -> None:
    """The front of random models, with ties in one of the two, and the judgement."""
    example = ([2.0, 3.0, 4.0, 1.0], [2.0, 1.0, 1.5, 3.0])
    assert_type(student(*example), list, "your front")
    assert_equal(
        student(*example),
        [3, 0, 1],
        name="the front of the example",
        mistakes=_wrong_fronts(*example),
    )
    random = torch.Generator().manual_seed(seed)
    sizes = torch.rand(40, generator=random)
    losses = (1 - sizes) ** 2 + 0.5 * torch.rand(40, generator=random)
    tied = ([1.0, 1.0, 2.0, 2.0, 3.0], [3.0, 2.0, 2.0, 1.0, 1.0])
    for models in (tied, (sizes.tolist(), losses.tolist())):
        assert_equal(
            student(*models), _front(*models), name="your front", mistakes=_wrong_fronts(*models)
        )
    assert_equal(
        n_front,
        3,
        name="n_front",
        mistakes={
            "int8 has the same loss as the whole model and is smaller, so it beats it": 4,
        },
    )
    assert_equal(
        choice,
        "nf4",
        name="choice",
        mistakes={
            "distilled nf4 is the smallest, but its loss is above 0.780": "distilled nf4",
            "int8 does not fit into 0.8 MB": "int8",
        },
    )
    assert_equal(
        reason,
        "b",
        name="reason",
        mistakes={
            "(a): whether 0.005 matters depends on the noise, and nobody has measured it": "a",
            "(c): smaller models can be as good; distilled ones often are": "c",
        },
    )


def _front(sizes: Sequence[float], losses: Sequence[float]) -> list[int]:
    """By definition: nobody is at least as good in both and better in one."""
    models = list(zip(sizes, losses, strict=True))

    def beaten(one: tuple[float, float]) -> bool:
        return any(other != one and other[0] <= one[0] and other[1] <= one[1] for other in models)

    return sorted((i for i, m in enumerate(models) if not beaten(m)), key=lambda i: sizes[i])


def _wrong_fronts(sizes: Sequence[float], losses: Sequence[float]) -> dict[str, list[int]]:
    right = _front(sizes, losses)
    smaller_better = [
        i
        for i in range(len(sizes))
        if not any(a < sizes[i] and b < losses[i] for a, b in zip(sizes, losses, strict=True))
    ]
    wrong = {
        "your front is not sorted by size": sorted(right),
        "your front begins with the largest model; the smallest comes first": right[::-1],
        "you list the models that are beaten": [i for i in range(len(sizes)) if i not in right],
        "a model that ties in size or loss, and is better in the other, beats it, too": sorted(
            smaller_better, key=lambda i: (sizes[i], losses[i])
        ),
        "your front holds sizes; return the models' places": [sizes[i] for i in right],
        "your front rises: it is made for scores, where more is better": _front(
            sizes, [-loss for loss in losses]
        ),
    }
    return {message: front for message, front in wrong.items() if front != right}
