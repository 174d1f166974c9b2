"""Near duplicates: signatures against exact overlap, banding against its formula."""

import math
import random
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.data.dedup import (
    choose_bands,
    contaminated,
    deduplicate,
    duplicate_of,
    estimate_jaccard,
    jaccard,
    lsh_candidates,
    match_probability,
    minhash,
    shingles,
)

WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "st", "l")]


def random_text(rng: random.Random, n_words: int = 60) -> str:
    return " ".join(rng.choices(WORDS, k=n_words))


def test_shingles_ignore_case_and_punctuation_and_survive_a_new_process():
    assert shingles("The cat, sat.", 2) == shingles("the CAT sat", 2)
    assert len(shingles("a b c d e f", 5)) == 2
    assert len(shingles("a b", 5)) == 1
    assert shingles("a b", 5) == {2154585299}  # zlib.crc32(b"a b"), the same everywhere


def test_jaccard_by_hand():
    assert jaccard({1, 2, 3}, {2, 3, 4}) == 0.5
    assert jaccard({1}, {2}) == 0
    assert jaccard(set(), set()) == 1


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 300), st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_the_estimate_is_the_exact_overlap_within_its_error(only_a, only_b, both, seed):
    ids = random.Random(seed).sample(range(2**32), only_a + only_b + both)
    a, b = set(ids[: only_a + both]), set(ids[only_a:])
    exact = jaccard(a, b)
    k = 2048
    estimate = estimate_jaccard(minhash(a, k, seed=seed), minhash(b, k, seed=seed))
    assert abs(estimate - exact) <= 5 * math.sqrt(exact * (1 - exact) / k) + 2 / k


def test_a_signature_is_the_minimum_over_the_set():
    """min over a union is the smaller of the two minima: the property banding rests on."""
    a, b = {1, 5, 9}, {2, 7}
    union = minhash(a | b, 64)
    assert torch.equal(union, torch.minimum(minhash(a, 64), minhash(b, 64)))
    assert union.shape == (64,) and union.dtype == torch.int64
    assert torch.equal(minhash([9, 1, 5], 64), minhash([1, 5, 9, 9], 64))
    assert not torch.equal(minhash(a, 64, seed=0), minhash(a, 64, seed=1))


@pytest.mark.parametrize(("bands", "rows"), [(1, 1), (16, 1), (4, 4), (8, 3), (20, 5)])
def test_banding_follows_the_s_curve(bands, rows):
    """Signatures that agree in each place with probability s: count candidates, compare."""
    generator = torch.Generator().manual_seed(bands)
    n = 1500
    for similarity in (0.2, 0.5, 0.8):
        k = bands * rows + (bands > 1)  # one place too many, which banding must leave alone
        first = torch.randint(10**12, (n, k), generator=generator)
        other = torch.randint(10**12, (n, k), generator=generator)
        same = torch.rand(n, k, generator=generator) < similarity
        pairs = lsh_candidates(torch.cat([first, torch.where(same, first, other)]), bands)
        assert all(j == i + n for i, j in pairs)
        p = match_probability(similarity, bands, rows)
        assert abs(len(pairs) / n - p) <= 4.5 * math.sqrt(p * (1 - p) / n) + 1e-9


def test_banding_finds_all_pairs_of_a_bucket():
    signatures = torch.tensor([[1, 2, 3, 4], [1, 2, 9, 9], [7, 7, 9, 9], [1, 2, 3, 4]])
    assert lsh_candidates(signatures, 2) == {(0, 1), (0, 3), (1, 3), (1, 2)}
    assert lsh_candidates(signatures, 1) == {(0, 3)}


@given(st.integers(8, 300), st.floats(0.05, 1), st.floats(0.5, 0.99))
def test_chosen_bands_reach_the_recall_and_one_more_row_would_not(k, threshold, recall):
    try:
        bands, rows = choose_bands(k, threshold, recall)
    except ValueError:
        assert match_probability(threshold, k, 1) < recall
        return
    assert bands * rows <= k
    assert match_probability(threshold, bands, rows) >= recall
    for more in range(rows + 1, k + 1):
        assert match_probability(threshold, k // more, more) < recall


@given(st.integers(0, 2**31))
@settings(deadline=None, max_examples=10)
def test_planted_copies_are_found_and_nothing_else(seed):
    rng = random.Random(seed)
    texts = [random_text(rng) for _ in range(30)]
    truth = list(range(30))
    for original in range(0, 30, 3):
        words = texts[original].split()
        words[rng.randrange(len(words))] = "xyz"  # breaks 5 of 56 shingles: J = 51/61 or more
        texts.append(" ".join(words))
        truth.append(original)
    texts.append(texts[4].upper() + "!")
    truth.append(4)
    found = duplicate_of(texts, threshold=0.7)
    assert found == truth
    assert deduplicate(texts, threshold=0.7) == list(range(30))


def test_copies_of_copies_are_one_group():
    rng = random.Random(1)
    words = random_text(rng, 100).split()
    versions = []
    for step in range(4):
        versions.append(" ".join(words))
        words[20 * step + 5] = "xyz"
    assert jaccard(shingles(versions[0]), shingles(versions[3])) < 0.8
    assert duplicate_of(versions, threshold=0.8) == [0, 0, 0, 0]
    assert deduplicate([]) == []


@given(st.integers(0, 2**31))
@settings(deadline=None, max_examples=15, derandomize=True)
def test_groups_are_those_of_comparing_all_pairs(seed):
    """Chains of edited copies in any order, against connected components by brute force."""
    rng = random.Random(seed)
    texts = []
    for _ in range(4):
        words = random_text(rng, 40).split()
        for _ in range(rng.randint(1, 8)):
            texts.append(" ".join(words))
            words[rng.randrange(40)] = rng.choice(WORDS)
    rng.shuffle(texts)
    sets = [shingles(text, 3) for text in texts]
    expected = list(range(len(texts)))
    for _ in texts:  # enough rounds for a label to travel along any chain
        for i, j in combinations(range(len(texts)), 2):
            if jaccard(sets[i], sets[j]) >= 0.8:
                expected[i] = expected[j] = min(expected[i], expected[j])
    # One edit leaves 0.85 or more, which 512 hashes all but surely find at this threshold.
    assert duplicate_of(texts, threshold=0.8, n_hashes=512, width=3) == expected


def test_contaminated_documents_share_a_run_of_words():
    items = ["What is the capital of France? The capital of France is Paris.", "Two plus two"]
    documents = [
        "he asked: what is THE capital, of france the capital of france is",  # 11 in a row
        "what is the capital of Spain? The capital of France is Paris.",
        "and two plus two is four",
        "two plus one",
        "",
    ]
    assert contaminated(documents, items, n=11) == [0, 2]
    assert contaminated(documents, items, n=5) == [0, 1, 2]
    assert contaminated(documents, [], n=5) == []


def test_what_is_refused_and_in_which_words():
    with pytest.raises(ValueError, match="width is 0, expected at least 1"):
        shingles("a", 0)
    with pytest.raises(ValueError, match="no shingles"):
        minhash(set())
    with pytest.raises(ValueError, match="n_hashes is 0, expected at least 1"):
        minhash({1}, 0)
    with pytest.raises(ValueError, match=r"bands is 9, expected 1 … 8"):
        lsh_candidates(torch.zeros(2, 8, dtype=torch.int64), 9)
    with pytest.raises(ValueError, match="bands is 0"):
        lsh_candidates(torch.zeros(2, 8, dtype=torch.int64), 0)
    with pytest.raises(ValueError, match="threshold is 0, expected 0 < threshold"):
        choose_bands(128, 0)
    with pytest.raises(ValueError, match="4 hashes cannot find similarity"):
        choose_bands(4, 0.1)
    with pytest.raises(ValueError, match="n is 0, expected at least 1"):
        contaminated(["a"], ["a"], n=0)
    with pytest.raises(ValueError, match="has no words to look for"):
        contaminated(["a"], ["…"])
