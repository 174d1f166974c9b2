"""The n-gram model: predict the next token from counts of the last n − 1.

T tokens, V vocabulary. An m-gram is stored as one integer, its tokens read as the digits of a
number in base V; the counts are then two sorted arrays, and looking up a million n-grams is
one binary search.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Ids = Sequence[int] | np.ndarray | Tensor


class NGram:
    """Counts with add-k smoothing and, if `weights` are given, interpolation of all orders.

    The estimate of order m is (count(context, token) + k) / (count(context) + k·V), its
    context being the last m − 1 tokens. Without weights the model is the estimate of order n
    alone; with weights w_1 … w_n it is Σ w_m · estimate_m. With k = 0 an order whose context
    was never seen has no estimate: alone it says probability 0, interpolated it leaves its
    share to the others.

    Args:
        n: order; 1 looks at no context, 2 is a bigram model, 3 a trigram model.
        vocab_size: V; ids are 0 … V − 1.
        add_k: k, added to every count.
        weights: n non-negative numbers that sum to 1, lowest order first, or None.

    Raises:
        ValueError: an argument is out of range, or V**n does not fit 63 bits.

    Source: Jelinek & Mercer 1980; Chen & Goodman 1999, §2.
    """

    def __init__(
        self,
        n: int,
        vocab_size: int,
        add_k: float = 0.0,
        weights: Sequence[float] | None = None,
    ):
        if n < 1 or vocab_size < 1:
            raise ValueError(f"n={n}, vocab_size={vocab_size}: expected 1 or more of both")
        if vocab_size**n >= 2**63:
            raise ValueError(f"vocab_size**n = {vocab_size}**{n} does not fit 63 bits; lower n")
        if add_k < 0:
            raise ValueError(f"add_k={add_k}: expected 0 or more")
        self.n, self.vocab_size, self.add_k = n, vocab_size, add_k
        self.weights = None if weights is None else self._checked(weights)
        self._keys: list[np.ndarray] = []  # entry m holds the sorted (m + 1)-grams seen
        self._counts: list[np.ndarray] = []
        self._prefixes: list[np.ndarray] = []  # entry m holds the sorted contexts of m tokens
        self._contexts: list[np.ndarray] = []  # and how often each was followed by a token

    def fit(self, ids: Ids) -> "NGram":
        """Count every m-gram, m = 1 … n, in a line of T ≥ n tokens; return self.

        Raises:
            ValueError: too few tokens, or an id outside the vocabulary.
        """
        ids = self._array(ids)
        self._keys, self._counts, self._prefixes, self._contexts = [], [], [], []
        for m in range(1, self.n + 1):
            keys, counts = np.unique(self._grams(ids, m), return_counts=True)
            self._keys.append(keys)
            self._counts.append(counts)
        for m in range(self.n):
            # A context counts as often as something followed it: sum its (m + 1)-grams.
            prefixes, first = np.unique(self._keys[m] // self.vocab_size, return_index=True)
            self._prefixes.append(prefixes)
            self._contexts.append(np.add.reduceat(self._counts[m], first))
        return self

    def count(self, gram: Sequence[int]) -> int:
        """How often these tokens (1 to n of them) stood in a row in the fitted line."""
        key = self._grams(np.asarray(gram), len(gram))
        return int(_look_up(self._keys[len(gram) - 1], self._counts[len(gram) - 1], key)[0])

    def nats(self, ids: Ids) -> Tensor:
        """Surprisal −ln p of each of the T tokens but the first n − 1: (T − n + 1,) float64.

        An event of probability 0 costs inf.
        """
        p = self._mixed(self._estimates(self._grams(self._array(ids), self.n)))
        with np.errstate(divide="ignore"):
            return torch.from_numpy(-np.log(p))

    def perplexity(self, ids: Ids) -> float:
        """e to the mean surprisal: among how many equally likely tokens the model wavers."""
        return float(self.nats(ids).mean().exp())

    def log_probs(self, context: Sequence[int]) -> Tensor:
        """ln p of every next token after a context of at least n − 1 tokens: (V,) float64.

        Raises:
            ValueError: the context is too short.
        """
        if len(context) < self.n - 1:
            raise ValueError(f"context of {len(context)} tokens: expected at least {self.n - 1}")
        last = list(context)[len(context) - self.n + 1 :]
        lines = np.column_stack(
            [np.full(self.vocab_size, i) for i in last] + [np.arange(self.vocab_size)]
        )
        keys = lines @ self.vocab_size ** np.arange(self.n - 1, -1, -1)
        with np.errstate(divide="ignore"):
            return torch.from_numpy(np.log(self._mixed(self._estimates(keys))))

    def tune(self, ids: Ids, rounds: int = 20) -> "NGram":
        """Set the weights to those that predict held-out tokens best, by EM; return self.

        Each round asks which order explains each token (E), then gives every order the share
        it explains (M). On the tokens of `fit` the highest order would take everything.
        """
        estimates, known = self._estimates(self._grams(self._array(ids), self.n))
        weights = np.full(self.n, 1 / self.n)
        for _ in range(rounds):
            share = weights * known
            share /= share.sum(1, keepdims=True)
            explained = share * estimates
            explained /= np.maximum(explained.sum(1, keepdims=True), 1e-300)
            weights = explained.mean(0)
            weights /= weights.sum()
        self.weights = weights
        return self

    def _estimates(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For n-grams (N,): the estimate of every order and whether it has one, both (N, n)."""
        if not self._keys:
            raise ValueError("the model has no counts yet; call fit(ids) first")
        estimates = np.zeros((len(keys), self.n))
        known = np.ones((len(keys), self.n), dtype=bool)
        for m in range(self.n):
            gram = keys % self.vocab_size ** (m + 1)  # the last m + 1 tokens
            seen = _look_up(self._keys[m], self._counts[m], gram)
            context = _look_up(self._prefixes[m], self._contexts[m], gram // self.vocab_size)
            total = context + self.add_k * self.vocab_size
            known[:, m] = total > 0
            estimates[:, m] = (seen + self.add_k) / np.where(total > 0, total, 1)
        return estimates, known

    def _mixed(self, estimated: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        estimates, known = estimated
        if self.weights is None:
            return estimates[:, -1]
        share = self.weights * known
        return (share * estimates).sum(1) / np.maximum(share.sum(1), 1e-300)

    def _grams(self, ids: np.ndarray, m: int) -> np.ndarray:
        """All runs of m tokens, each as one integer: (T − m + 1,) int64."""
        if len(ids) < m:
            raise ValueError(f"{len(ids)} tokens: expected at least {m} for an order of {m}")
        keys = np.zeros(len(ids) - m + 1, dtype=np.int64)
        for i in range(m):
            keys = keys * self.vocab_size + ids[i : len(ids) - m + 1 + i]
        return keys

    def _array(self, ids: Ids) -> np.ndarray:
        array = np.asarray(ids, dtype=np.int64)
        if array.ndim != 1:
            raise ValueError(f"ids of shape {array.shape}: expected one line of tokens (T,)")
        if len(array) and not 0 <= array.min() <= array.max() < self.vocab_size:
            raise ValueError(
                f"ids from {array.min()} to {array.max()}: expected 0 to {self.vocab_size - 1}"
            )
        return array

    def _checked(self, weights: Sequence[float]) -> np.ndarray:
        array = np.asarray(weights, dtype=np.float64)
        if array.shape != (self.n,) or array.min() < 0 or abs(array.sum() - 1) > 1e-6:
            raise ValueError(f"weights={weights}: expected {self.n} numbers ≥ 0 that sum to 1")
        return array


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[i] where keys[i] == wanted, else 0; `keys` is sorted."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
