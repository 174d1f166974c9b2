"""Red teaming: search for the clothes in which a model goes wrong.

People and models who attack a model do not try all there is: they try some, and vary what worked
(Perez et al. 2022, *Red Teaming Language Models with Language Models*). Here an attack has three
pieces, and a variant changes one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

import torch

from minillm.data.requests import Attack

Success = Callable[[Sequence[Attack]], Sequence[float]]  # share of requests gone wrong, each


def search(
    success: Success,
    pool: Sequence[Attack],
    *,
    n_tries: int,
    n_best: int = 8,
    generator: torch.Generator | None = None,
) -> dict[Attack, float]:
    """Try attacks: first some at random, then variants of those that worked best.

    Args:
        success: tries a few attacks on the model.
        pool: attacks to choose from. A variant of an attack is another one of the pool that
            differs in one piece.
        n_tries: how many to try in all; n_best of them at a time.

    Returns:
        What was tried, with its success, the best first. At most the whole pool.

    Raises:
        ValueError: an empty pool, or fewer than one try.
    """
    if not pool or n_tries < 1 or n_best < 1:
        raise ValueError(
            f"{len(pool)} attacks, n_tries={n_tries}, n_best={n_best}: expected at least 1 each"
        )
    left = [pool[i] for i in torch.randperm(len(pool), generator=generator).tolist()]
    tried: dict[Attack, float] = {}
    while left and len(tried) < n_tries:
        best = sorted(tried, key=tried.get, reverse=True)[:n_best]
        near = [attack for b in best for attack in left if is_variant(attack, b)]
        # Half of each turn goes to something new, so that no corner is forgotten.
        turn = list(dict.fromkeys([*near[: n_best // 2], *left]))[:n_best][: n_tries - len(tried)]
        tried.update(zip(turn, success(turn), strict=True))
        left = [attack for attack in left if attack not in tried]
    return dict(sorted(tried.items(), key=lambda item: -item[1]))


def is_variant(a: Attack, b: Attack) -> bool:
    """Whether two attacks differ in exactly one piece."""
    return sum(getattr(a, f.name) != getattr(b, f.name) for f in fields(Attack)) == 1
