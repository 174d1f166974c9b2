"""What k tries are worth, measured from n ≥ k of them without bias.

    pass_at_k(n=3, c=1, k=2)      2/3: of the three pairs, two hold the right one

Drawing k tries and looking is noisy. Whoever has drawn n can average over *all* subsets of k
instead, and for most rules of choosing there is a formula, so that no subset is ever drawn.

Shapes: P problems, N samples each. Masks are bool, True = right.
"""

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from minillm.evaluate.search import vote


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n samples, drawn without putting back, hold one of the c right ones.

    1 − C(n−c, k) / C(n, k), as a product, so that no large number occurs. Unbiased for the chance
    that k fresh samples hold a right one; 1 − (1 − c/n)^k is not (Chen et al. 2021, §2.1).

    Raises:
        ValueError: not 0 ≤ c ≤ n and 1 ≤ k ≤ n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"n={n}, c={c}, k={k}: expected 0 ≤ c ≤ n and 1 ≤ k ≤ n")
    # No right one among k: the i-th of the c right ones falls outside the k every time.
    return 1.0 - math.prod(1 - k / i for i in range(n - c + 1, n + 1))


def coverage(right: Tensor, k: int) -> float:
    """Mean pass@k of problems: the share that k samples would solve if one knew which is right.

    Args:
        right: (P, N) bool.

    Raises:
        ValueError: not a bool matrix, or k not in 1 … N.
    """
    _check(right, k)
    n = right.shape[1]
    counts = right.sum(1).tolist()
    return sum(pass_at_k(n, c, k) for c in counts) / len(counts)


def best_of_k(right: Tensor, scores: Tensor, k: int) -> float:
    """How often the highest-scored of k samples is right, averaged over all subsets of k of N.

    The sample of rank r (0 is the highest) is the best of C(N−1−r, k−1) subsets of C(N, k): those
    whose other members all rank below. Samples with equal scores share their ranks' chances.

    Args:
        right: (P, N) bool.
        scores: (P, N) float, of a verifier.

    Raises:
        ValueError: shapes that differ, not bool, or k not in 1 … N.
    """
    _check(right, k)
    if scores.shape != right.shape:
        raise ValueError(
            f"scores {tuple(scores.shape)} for samples {tuple(right.shape)}: expected the same"
        )
    n = right.shape[1]
    chances = [math.comb(n - 1 - rank, k - 1) / math.comb(n, k) for rank in range(n)]
    chances = torch.tensor(chances, dtype=torch.float64)
    total = 0.0
    for row, row_scores in zip(right.double().cpu(), scores.cpu(), strict=True):
        by_score, places = row_scores.sort(descending=True, stable=True)
        _, tied = by_score.unique_consecutive(return_inverse=True)
        sums = torch.zeros(int(tied.max()) + 1, dtype=torch.float64)
        shared = sums.clone().scatter_add_(0, tied, row[places])  # right ones among the equals
        sizes = sums.clone().scatter_add_(0, tied, torch.ones(n, dtype=torch.float64))
        total += float((chances * (shared / sizes)[tied]).sum())
    return total / len(right)


def vote_of_k(
    answers: Sequence[Sequence[Hashable]],
    truths: Sequence[Hashable],
    k: int,
    generator: torch.Generator,
    *,
    weights: Sequence[Sequence[float]] | None = None,
    n_draws: int = 50,
) -> float:
    """How often the most frequent answer of k samples is the true one, over random subsets.

    There is no short formula here, so `n_draws` subsets a problem are drawn; k = N needs one.

    Args:
        answers: N for each of P problems; None is no answer and gets no vote.
        truths: P, the true answers.
        weights: how much each vote counts, P times N; all the same if None.

    Raises:
        ValueError: different lengths, or k not in 1 … N.
    """
    if len(answers) != len(truths) or not len(answers):
        raise ValueError(
            f"{len(answers)} problems and {len(truths)} truths: expected as many, and at least one"
        )
    won = 0
    n_draws = 1 if k == len(answers[0]) else n_draws
    for p, (given, truth) in enumerate(zip(answers, truths, strict=True)):
        if not 1 <= k <= len(given):
            raise ValueError(f"k={k} of {len(given)} samples: expected 1 to as many")
        for _ in range(n_draws):
            chosen = torch.randperm(len(given), generator=generator)[:k].tolist()
            heavy = None if weights is None else [float(weights[p][i]) for i in chosen]
            won += vote([given[i] for i in chosen], heavy) == truth
    return won / (n_draws * len(truths))


def _check(right: Tensor, k: int) -> None:
    if right.ndim != 2 or right.dtype != torch.bool or not right.numel():
        raise ValueError(
            f"right is {right.dtype} of shape {tuple(right.shape)}: expected bool, problems by "
            "samples"
        )
    if not 1 <= k <= right.shape[1]:
        raise ValueError(f"k={k} of {right.shape[1]} samples: expected 1 to as many")
