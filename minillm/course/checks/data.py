"""Checks for the exercises of lesson 03. Each names the mistake it recognises.

S shingles of one text, K hash functions, N texts.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable

import torch

from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_shape,
    assert_type,
    refuses,
)
from minillm.data import dedup

_PRIME = 2**31 - 1


def minhash_signature(student: Callable, *, n_hashes: int = 7, seed: int = 0) -> None:
    """One hash function and one shingle at a time, in Python's own integers."""
    rng = random.Random(seed)
    # Large coefficients: the product does not fit into 32 bits, and float64 rounds it.
    shingles = [rng.randrange(_PRIME // 2, _PRIME) for _ in range(11)]
    a = [rng.randrange(_PRIME // 2, _PRIME) for _ in range(n_hashes)]
    b = [rng.randrange(_PRIME) for _ in range(n_hashes)]

    def reference(pick=min, hashed=lambda x, k: (a[k] * x + b[k]) % _PRIME, over=shingles):
        return torch.tensor([pick(hashed(x, k) for x in over) for k in range(n_hashes)])

    def one_shingle():
        def hashed(x, k):
            return (a[k] * x + b[k]) % _PRIME

        return torch.tensor([min(shingles, key=lambda x: hashed(x, k)) for k in range(n_hashes)])

    given = [torch.tensor(values) for values in (shingles, a, b)]
    signature = student(*given)
    assert_shape(
        signature,
        (n_hashes,),
        "your signature",
        mistakes={
            "you took the smallest over the hash functions; take it over the shingles": (11,),
            "you returned every hash; keep only the smallest of each function": (n_hashes, 11),
            "you took one smallest value of all; each hash function has its own": (),
        },
    )
    assert_equal(signature.dtype, torch.int64, name="the dtype of your signature")
    assert_close(
        signature,
        reference(),
        name="your signature",
        rtol=0,
        atol=0,
        mistakes={
            "you took the largest hash; a signature holds the smallest": reference(max),
            "you forgot to add b": lambda: reference(hashed=lambda x, k: a[k] * x % _PRIME),
            "you forgot the remainder modulo 2**31 - 1": lambda: reference(
                hashed=lambda x, k: a[k] * x + b[k]
            ),
            "you added b after the remainder; it belongs inside": lambda: reference(
                hashed=lambda x, k: a[k] * x % _PRIME + b[k]
            ),
            "you returned the shingle with the smallest hash; return the hash": one_shingle,
        },
    )
    refuses(student, torch.tensor([], dtype=torch.int64), *given[1:], words="shingle|empty")


# text, what it must become, and what it means if it does not
_MASKED = [
    ("Ask ana.ruiz@mail.example.org now", "Ask <EMAIL> now", "a dot before or after the @ is "
     "part of the address: ana.ruiz@mail.example.org must go as a whole"),
    ("Ask bo+news@x-y.example now", "Ask <EMAIL> now", "+ and - are allowed in an address: "
     "bo+news@x-y.example must go as a whole"),
    ("Mail eve@a.example, or not.", "Mail <EMAIL>, or not.", "the comma after an address stays"),
    ("Mail eve@a.example.", "Mail <EMAIL>.", "the full stop after an address stays"),
    ("From 10.0.0.255 to 8.8.8.8.", "From <IP> to <IP>.", "all IP addresses of a text must go, "
     "also the one at the end of a sentence"),
    ("Not 256.1.1.1 here", "Not 256.1.1.1 here", "256.1.1.1 is no IP address: each part is at "
     "most 255"),
    ("Version 3.11.2 is out", "Version 3.11.2 is out", "3.11.2 has three parts: a version, not "
     "an IP address"),
    ("Build 1.2.3.4.5 is out", "Build 1.2.3.4.5 is out", "1.2.3.4.5 has five parts: a version, "
     "not an IP address"),
    ("Call +44 20 7946 0958 now", "Call <PHONE> now", "+44 20 7946 0958 is a phone number: its "
     "groups are separated by spaces"),
    ("Call +1-555-010-4477.", "Call <PHONE>.", "+1-555-010-4477 is a phone number: its groups "
     "may be separated by hyphens"),
    ("In 1999-2004, 1 000 000 of them", "In 1999-2004, 1 000 000 of them", "a number without "
     "a leading + is no phone number here"),
    ("Use a @ b and 3 + 4", "Use a @ b and 3 + 4", "a lone @ or + masks nothing"),
    ("", "", "an empty text stays empty"),
]  # fmt: skip


def mask(student: Callable, *, suffix: str = "") -> None:
    """One text a rule. `suffix` is put behind each to make other texts of them."""
    for text, expected, lesson in _MASKED:
        result = student(text + suffix)
        assert_type(result, str, "your masked text")
        if result != expected + suffix:
            raise AssertionError(
                f"{lesson}. mask({text + suffix!r}) gives {result!r}; expected "
                f"{expected + suffix!r}"
            )
    together = student("a@b.example 1.1.1.1 +1 555 010 4477" + suffix)
    assert_equal(together, "<EMAIL> <IP> <PHONE>" + suffix, name="a text with one of each")


def bands(student: Callable, *, n_hashes: int = 60) -> None:
    """Every admissible shape tried out; wrong answers are recognised by their criterion."""

    def reference(similar, recall, n=n_hashes, curve=dedup.match_probability, best=max, exact=True):
        shapes = [(n // r, r) for r in range(1, n + 1) if not exact or n % r == 0]
        good = [(b, r) for b, r in shapes if curve(similar, b, r) >= recall]
        return best(good, key=lambda shape: shape[1]) if good else None

    def swapped(similar, b, r):
        return dedup.match_probability(similar, r, b)

    def one_band(similar, b, r):
        return similar**r

    def all_bands(similar, b, r):
        return (similar**r) ** b

    for similar, recall in itertools.product((0.8, 0.4, 0.6, 0.9), (0.9, 0.5, 0.95)):
        expected = reference(similar, recall)
        mistakes = {
            "you return (rows, bands); the order is (bands, rows)": expected[::-1],
            "you took the fewest rows; more rows give fewer false candidates": reference(
                similar, recall, best=min
            ),
            "bands × rows must be exactly n_hashes": reference(similar, recall, exact=False),
            "bands and rows are swapped in your formula: 1 - (1 - s**rows)**bands": reference(
                similar, recall, curve=swapped
            ),
            "one band is enough for a pair to meet: 1 - (1 - s**rows)**bands, not s**rows": (
                reference(similar, recall, curve=one_band)
            ),
            "one band is enough for a pair to meet; you ask that all bands agree": reference(
                similar, recall, curve=all_bands
            ),
        }
        call = f"choose({n_hashes}, {similar}, {recall})"
        try:
            result = student(n_hashes, similar, recall)
        except ValueError:  # by some wrong formulas no shape is good enough
            for message, answer in mistakes.items():
                if answer is None:
                    raise AssertionError(message) from None
            raise AssertionError(f"{call} raises ValueError; {expected} is an answer") from None
        assert_equal(result, expected, name=call, mistakes=mistakes)
    refuses(student, n_hashes, 0.01, 0.999, words="recall|hashes")


def _texts(seed: int) -> list[str]:
    """Forty texts, of which every third has near copies, all shuffled."""
    rng = random.Random(seed)
    words = [first + rest for first in "bdfglmnprst" for rest in ("an", "el", "iro", "us", "oka")]
    texts = []
    for number in range(40):
        text = rng.choices(words, k=60)
        texts.append(" ".join(text))
        for _ in range(3 if number % 3 == 0 else 0):
            copy = text.copy()
            copy[rng.randrange(60)] = rng.choice(words)
            texts.append(" ".join(copy))
    rng.shuffle(texts)
    return texts


def split(student: Callable, *, seed: int = 0) -> None:
    """No near copy on both sides, none inside a side, nothing lost, deterministic."""
    texts = _texts(seed)
    distinct = len(dedup.deduplicate(texts, threshold=0.6))
    before = list(texts)
    result = student(texts, 0.25, seed=3)
    assert_equal(texts, before, name="the list you were given, after the call")
    assert_type(result, tuple, "your answer")
    assert_equal(len(result), 2, name="the number of parts you return")
    train, test = result
    for part, name in ((train, "train"), (test, "test")):
        assert_type(part, list, f"your {name} part")
        if not set(part) <= set(texts):
            raise AssertionError(f"your {name} part holds texts that were not given, or indices")
    both = train + test
    origin = dedup.duplicate_of(both, threshold=0.6)
    crossing = sum(origin[i] < len(train) for i in range(len(train), len(both)))
    if crossing:
        raise AssertionError(
            f"{crossing} test texts have a near copy in your training part: remove duplicates "
            "before you split, not after"
        )
    if sum(i != o for i, o in enumerate(origin)):
        raise AssertionError("near copies are left inside a part: keep one of each group")
    if len(both) < distinct:
        raise AssertionError(
            f"you return {len(both)} texts, {distinct} are distinct: every group keeps one text"
        )
    assert_equal(
        len(test),
        round(0.25 * distinct),
        name="the size of your test part",
        mistakes={
            "the test part is a share of the texts *after* deduplication": round(0.25 * len(texts)),
            "you swapped the parts; return (train, test)": distinct - round(0.25 * distinct),
        },
    )
    if student(texts, 0.25, seed=3) != result:
        raise AssertionError("the same seed gives another split: use random.Random(seed)")
    if student(texts, 0.25, seed=4) == result:
        raise AssertionError("another seed gives the same split: shuffle with random.Random(seed)")
    refuses(student, texts, 1.5, seed=0, words="share|fraction")


def contamination_curve(student: Callable, *, seed: int = 0) -> None:
    """Counts against brute force on texts where every run length gives another answer."""
    rng = random.Random(seed)
    words = [first + rest for first in "bdfglm" for rest in ("an", "el", "iro", "us")]
    benchmark = [" ".join(rng.choices(words, k=rng.randint(9, 20))) for _ in range(5)]
    documents = [" ".join(rng.choices(words, k=40)) for _ in range(30)]
    for length in (3, 5, 6, 8, 9):
        piece = benchmark[length % 5].split()[:length]
        documents.append(" ".join(rng.choices(words, k=10) + piece).upper() + "!")

    lengths = [2, 3, 5, 8, 9]

    def reference(clean=dedup.normalize, shares=True):
        counts = []
        for n in lengths:
            known = {tuple(run) for item in benchmark for run in _runs(clean(item), n)}
            hit = sum(any(run in known for run in _runs(clean(d), n)) for d in documents)
            counts.append(hit / len(documents) if shares else hit)
        return counts

    result = student(documents, benchmark, lengths)
    assert_type(result, list, "your answer")
    assert_equal(len(result), len(lengths), name="the number of shares you return")
    assert_close(
        result,
        reference(),
        name="your list of shares",
        mistakes={
            "you return counts; divide by the number of documents": reference(shares=False),
            "capital letters and punctuation must not matter: use dedup.normalize": reference(
                clean=str.split
            ),
            "your documents must be counted once each, not once a shared run": lambda: [
                sum(
                    run in {tuple(r) for item in benchmark for r in _runs(dedup.normalize(item), n)}
                    for d in documents
                    for run in set(_runs(dedup.normalize(d), n))
                )
                / len(documents)
                for n in lengths
            ],
            "you divide by the number of benchmark items; divide by that of documents": [
                share * len(documents) / len(benchmark) for share in reference()
            ],
        },
    )
    refuses(student, [], benchmark, lengths, words="document")


def judgement(n: object, reason: object) -> None:
    """The smallest run length without false alarms, and a reason in words."""
    assert_type(n, int, "your n")
    if n < 11:
        raise AssertionError(
            f"n = {n} flags innocent stories: look where the curve of fresh stories reaches 0"
        )
    if n > 20:
        raise AssertionError(
            f"n = {n} is longer than needed: a copy that was cut or edited would slip through"
        )
    assert_type(reason, str, "your reason")
    if len(re.findall(r"\w+", reason)) < 12:
        raise AssertionError("give your reason in at least twelve words: what does n trade off?")


def _runs(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
