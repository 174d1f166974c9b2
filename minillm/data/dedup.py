"""Copies: exact and near duplicates, and benchmark items that leaked into training text.

Two texts are as similar as their sets of shingles (runs of `width` words) overlap: the
Jaccard index |A ∩ B| / |A ∪ B|. MinHash (Broder 1997) estimates it from short signatures,
and banding (Leskovec, Rajaraman & Ullman, "Mining of Massive Datasets", §3.4) finds the
similar pairs without comparing all of them.

Shapes: N texts, K hash functions, S shingles of one text.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import combinations

import torch
from torch import Tensor

_PRIME = 2**31 - 1  # products of two residues fit in int64


def normalize(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation or spacing."""
    return re.findall(r"\w+", text.lower())


def shingles(text: str, width: int = 5) -> set[int]:
    """Hashes of all runs of `width` words of a text; a shorter text is one run.

    CRC-32, because Python's own `hash` of a string differs from process to process.

    Raises:
        ValueError: a width below 1.
    """
    if width < 1:
        raise ValueError(f"width is {width}, expected at least 1")
    words = normalize(text)
    runs = range(max(len(words) - width + 1, 1))
    return {zlib.crc32(" ".join(words[i : i + width]).encode()) for i in runs}


def jaccard(a: Collection[int], b: Collection[int]) -> float:
    """|A ∩ B| / |A ∪ B|; two empty sets are alike."""
    a, b = set(a), set(b)
    return len(a & b) / len(a | b) if a or b else 1.0


# --- MinHash -----------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _hash_family(n_hashes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Coefficients of h(x) = (a·x + b) mod prime, K of them, as (K, 1) columns."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(1, _PRIME, (n_hashes, 1), generator=generator)
    b = torch.randint(0, _PRIME, (n_hashes, 1), generator=generator)
    return a, b


def minhash(shingles: Collection[int], n_hashes: int = 128, seed: int = 0) -> Tensor:
    """Signature of a set: for each hash function, the smallest value over the set.

    Two sets agree in one place of their signatures with probability equal to their Jaccard
    index (up to the quality of the hash functions), because each function orders the union
    at random and the first element is shared with exactly that probability.

    shingles: S integers ≥ 0.  Returns (K,) int64. Compare only equal `n_hashes` and `seed`.
    Raises ValueError for an empty set, which has no smallest element.
    """
    if n_hashes < 1:
        raise ValueError(f"n_hashes is {n_hashes}, expected at least 1")
    if not shingles:
        raise ValueError("no shingles: an empty set has no smallest hash")
    a, b = _hash_family(n_hashes, seed)
    x = torch.tensor(list(shingles), dtype=torch.int64) % _PRIME  # (S,)
    return ((a * x + b) % _PRIME).amin(dim=1)


def estimate_jaccard(a: Tensor, b: Tensor) -> float:
    """Fraction of places (K,) where two signatures agree: unbiased, σ = √(J(1−J)/K)."""
    return (a == b).double().mean().item()


# --- Banding -----------------------------------------------------------------------------


def match_probability(similarity: float | Tensor, bands: int, rows: int) -> float | Tensor:
    """The S-curve: chance 1 − (1 − s^rows)^bands that two texts become a candidate pair."""
    return 1 - (1 - similarity**rows) ** bands


def choose_bands(n_hashes: int, threshold: float, recall: float = 0.95) -> tuple[int, int]:
    """(bands, rows) with the steepest S-curve that still finds `recall` at the threshold.

    More rows mean fewer false candidates; the most rows are taken for which a pair exactly
    as similar as `threshold` is found with probability at least `recall`.

    Raises ValueError if even one row a band does not reach it.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}, expected 0 < threshold ≤ 1")
    for rows in range(n_hashes, 0, -1):
        bands = n_hashes // rows
        if match_probability(threshold, bands, rows) >= recall:
            return bands, rows
    raise ValueError(
        f"{n_hashes} hashes cannot find similarity {threshold} with recall {recall}: "
        "use more hashes or a higher threshold"
    )


def lsh_candidates(signatures: Tensor, bands: int) -> set[tuple[int, int]]:
    """Pairs i < j whose signatures agree in all rows of at least one band.

    signatures: (N, K) int64, cut into `bands` bands of K // bands rows; what is left over
    is not used. The work grows with the number of pairs found, not with N².

    Raises:
        ValueError: bands below 1 or above K.
    """
    rows = signatures.shape[1] // bands if bands >= 1 else 0
    if rows == 0:
        raise ValueError(f"bands is {bands}, expected 1 … {signatures.shape[1]}")
    values = signatures.numpy()
    pairs: set[tuple[int, int]] = set()
    for start in range(0, bands * rows, rows):
        buckets = defaultdict(list)
        for index, row in enumerate(values[:, start : start + rows]):
            buckets[row.tobytes()].append(index)
        for bucket in buckets.values():
            pairs.update(combinations(bucket, 2))
    return pairs


# --- Using both --------------------------------------------------------------------------


def duplicate_of(
    texts: Sequence[str],
    *,
    threshold: float = 0.8,
    n_hashes: int = 128,
    width: int = 5,
    seed: int = 0,
) -> list[int]:
    """For each text the index of the first text of its group of copies: itself, if first.

    Exact copies (same words) are grouped first. Of the rest, banding proposes pairs, the
    exact Jaccard index confirms those ≥ threshold, and confirmed pairs are chained: if a is
    a copy of b and b of c, all three are one group.
    """
    group = list(range(len(texts)))

    def first(index: int) -> int:
        while group[index] != index:
            group[index] = index = group[group[index]]  # halve the path on the way
        return index

    seen: dict[str, int] = {}
    for index, text in enumerate(texts):
        group[index] = seen.setdefault(" ".join(normalize(text)), index)

    distinct = list(seen.values())
    sets = [shingles(texts[index], width) for index in distinct]
    if sets:
        bands, _ = choose_bands(n_hashes, threshold)
        signatures = torch.stack([minhash(s, n_hashes, seed) for s in sets])
        for a, b in lsh_candidates(signatures, bands):
            low, high = sorted((first(distinct[a]), first(distinct[b])))
            if low != high and jaccard(sets[a], sets[b]) >= threshold:
                group[high] = low
    return [first(index) for index in range(len(texts))]


def deduplicate(texts: Sequence[str], **options) -> list[int]:
    """Indices of the texts to keep, the first of each group; options of `duplicate_of`."""
    return [index for index, copy in enumerate(duplicate_of(texts, **options)) if copy == index]


def contaminated(documents: Sequence[str], benchmark: Sequence[str], n: int = 13) -> list[int]:
    """Indices of the documents that share a run of n words with a benchmark item.

    n = 13 follows Brown et al. 2020 (GPT-3), appendix C. An item of fewer than n words must
    appear whole. Upper case, punctuation and spacing do not matter.

    Raises ValueError for n < 1 or an item without words.
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected at least 1")
    runs: dict[int, set[tuple[str, ...]]] = defaultdict(set)  # length: runs of that length
    for item in benchmark:
        words = normalize(item)
        if not words:
            raise ValueError(f"benchmark item {item!r} has no words to look for")
        runs[min(n, len(words))].update(_runs(words, min(n, len(words))))
    return [
        index
        for index, document in enumerate(documents)
        if any(not known.isdisjoint(_runs(normalize(document), k)) for k, known in runs.items())
    ]


def _runs(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
