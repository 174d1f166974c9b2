"""Random tokens that repeat: nothing can be known beforehand, everything can be looked up.

    row with lag 4      7 2 9 4 7 2 9 4 7 2 …

No statistics of a language help here. Whoever predicts the second round has found the token's
earlier place in *this* row and read on from there: the smallest task of in-context learning
(Olsson et al. 2022, "In-context Learning and Induction Heads").

Shapes: B batch, T time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.data.packing import IGNORE, Batch


def repeats(
    n_rows: int,
    length: int,
    vocab_size: int,
    lags: tuple[int, int],
    generator: torch.Generator,
    second_round_only: bool = False,
) -> Batch:
    """Rows that repeat a random segment to their end, each with a lag of its own.

    With one lag for all rows a model needs not look at the tokens: "so many places back" is
    enough, which one layer can do. So the lag varies.

    Args:
        n_rows: B. length: T, inputs in a row; one more token is drawn, for the last target.
        vocab_size: tokens are uniform over 0 … vocab_size − 1; in a segment they may recur.
        lags: smallest and largest length of a segment, both included.
        second_round_only: make every target IGNORE that has not been seen a lag earlier, in order
            to count only what can be known.

    Returns:
        tokens and targets, int64 (B, T).

    Raises:
        ValueError: the lags are not 1 ≤ smallest ≤ largest < length.
    """
    smallest, largest = lags
    if not 1 <= smallest <= largest < length:
        raise ValueError(f"lags={lags}: expected 1 ≤ smallest ≤ largest < length={length}")
    lag = torch.randint(smallest, largest + 1, (n_rows, 1), generator=generator)
    segments = torch.randint(vocab_size, (n_rows, largest), generator=generator)
    places = torch.arange(length + 1)
    rows: Tensor = segments.gather(1, places % lag)
    tokens, targets = rows[:, :-1].contiguous(), rows[:, 1:].clone()
    if second_round_only:
        targets[places[:-1] < lag] = IGNORE  # the token itself is new, so is what follows
    return Batch(tokens, targets)
