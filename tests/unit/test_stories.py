"""Stories: the stated surprisals are the true ones, checked by enumeration and by sampling."""

import math
from collections import Counter, defaultdict

import pytest
import torch

from minillm.data import stories
from minillm.data.grammar import END_TEXT, Grammar, Word
from minillm.data.packing import IGNORE

SHE, HE = {"they": "she"}, {"they": "he"}
SMALL_WORDS = {
    "name": [Word("Ann", SHE), Word("Bea", SHE), Word("Cy", HE)],
    "need": [Word("hungry", {"class": "food"}), Word("cold", {"class": "wool"})],
    "food": [Word("pie"), Word("soup"), Word("bread")],
    "wool": [Word("scarf")],
}
SMALL = Grammar(
    [
        "once {hero:name} was {need:need} . {friend:name} gave the {gift:need.class} . "
        "{hero.they} ran .",
        "when [ 3 he | 1 she [ sang | cried ] ] left {hero:name} slept .",
    ],
    SMALL_WORDS,
)


def every_story(grammar):
    """All (tokens, probability), by following every choice."""
    waiting = [([], 1.0, grammar.start, {})]
    while waiting:
        tokens, p, node, bound = waiting.pop()
        if tokens and tokens[-1] == END_TEXT:
            yield tuple(tokens), p
            continue
        for token, q, after, binding in grammar.options(node, bound):
            then = bound if binding is None else {**bound, binding[0]: binding[1]}
            waiting.append(([*tokens, token], p * q, after, then))


def test_small_grammar_by_enumeration():
    """The conditional probabilities follow from the joint ones by summing, and vice versa."""
    joint = dict(every_story(SMALL))
    # 3 names · 2 needs · 2 friends · (3 foods or 1 scarf) + 3 ways to leave · 3 names
    assert len(joint) == 3 * 2 * (3 + 1) + 3 * 3
    assert math.isclose(sum(joint.values()), 1.0)
    mass = defaultdict(float)  # probability of each prefix
    for tokens, p in joint.items():
        for i in range(len(tokens) + 1):
            mass[tokens[:i]] += p
    for prefix in mass:
        if prefix[-1:] == (END_TEXT,):
            continue
        following = SMALL.next_token_probabilities(prefix)
        assert math.isclose(sum(following.values()), 1.0)
        for token, p in following.items():
            assert math.isclose(p, mass[(*prefix, token)] / mass[prefix])
    assert SMALL.next_token_probabilities(["when"]) == {"he": 0.75, "she": 0.25}
    assert SMALL.next_token_probabilities(["once", "Ann", "was", "cold", "."]) == {
        "Bea": 0.5,  # Ann is taken
        "Cy": 0.5,
    }
    entropy = -sum(p * math.log(p) for p in joint.values())
    length = sum(p * len(tokens) for tokens, p in joint.items())
    assert SMALL.expectation == pytest.approx((entropy, length), abs=1e-12)


def test_samples_carry_their_exact_surprisal():
    joint = dict(every_story(SMALL))
    generator = torch.Generator().manual_seed(0)
    counts = Counter()
    for _ in range(4000):
        tokens, nats = SMALL.sample(generator)
        assert math.isclose(sum(nats), -math.log(joint[tuple(tokens)]), abs_tol=1e-9)
        counts[tuple(tokens)] += 1
    # Pearson's statistic has mean k and standard deviation about √(2k) for k degrees of freedom.
    k = len(joint) - 1
    chi2 = sum((counts[t] - 4000 * p) ** 2 / (4000 * p) for t, p in joint.items())
    assert chi2 < k + 5 * math.sqrt(2 * k)


def test_the_real_grammar_entropy_agrees_with_sampling():
    sample = stories.stories(3000, seed=0)
    for value, exact in (
        ([sum(s.nats) for s in sample], stories.entropy_per_story()),
        ([float(len(s.tokens)) for s in sample], stories.tokens_per_story()),
    ):
        value = torch.tensor(value)
        standard_error = value.std() / len(value) ** 0.5
        assert abs(value.mean() - exact) < 4 * standard_error


def test_next_token_probabilities_agree_with_a_story():
    for story in stories.stories(20, seed=1):
        for i, (token, nats) in enumerate(zip(story.tokens, story.nats, strict=True)):
            following = stories.next_token_probabilities(story.tokens[:i])
            assert math.isclose(sum(following.values()), 1.0)
            assert math.isclose(-math.log(following[token]), nats, abs_tol=1e-12)


def test_there_is_enough_to_tell():
    sample = stories.stories(3000, seed=2)
    assert len({s.text for s in sample}) > 2990
    assert len(stories.vocabulary()) >= 500
    assert {t for s in sample for t in s.tokens} <= set(stories.vocabulary())
    assert stories.vocabulary()[stories.END] == END_TEXT
    longest = max(len(s.tokens) for s in sample)
    assert 30 < stories.tokens_per_story() < 60 and longest < 64


def test_agreement_and_facts_hold_across_the_story():
    for story in stories.stories(400, seed=3):
        tokens = story.tokens
        text = " ".join(tokens)
        if "not there" in text:
            at = tokens.index("there")
            plural = tokens[at - 3].endswith("s") or tokens[at - 3] == "dice"
            assert tokens[at - 2] == ("were" if plural else "was")
        if "who is there" in text:
            animal = tokens[tokens.index("heard") - 1]
            assert text.count(f" {animal} ") >= 3


def test_seeds():
    assert stories.stories(5, seed=0) == stories.stories(5, seed=0)
    assert stories.stories(5, seed=0) != stories.stories(5, seed=1)


def test_text_and_ids_round_trip():
    for story in stories.stories(300, seed=4):
        assert stories.tokenize(story.text) == story.tokens[:-1]
        assert stories.decode([*stories.encode(story.text), stories.END]) == story.text
        assert story.text[0].isupper() and story.text[-1] == "." and "  " not in story.text


def test_text_reads_as_english():
    spaced = 'one day Mia asked , " where is it ? " said I . it was .'
    text = 'One day Mia asked, "Where is it?" said I. It was.'
    assert stories.detokenize(spaced.split(" ")) == text


def test_dataset_has_distinct_stories_and_their_floor():
    parts = stories.dataset(200, 30, 40, seed=5)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 200,
        "validation": 30,
        "test": 40,
    }
    texts = [text for part in parts.values() for text in part["text"]]
    assert len(set(texts)) == 270
    row = parts["test"][0]
    assert row["n_tokens"] == len(stories.encode(row["text"])) + 1
    assert 20 < row["nats"] < 60


def test_batches_hold_one_whole_story_a_row():
    texts = [s.text for s in stories.stories(5, seed=6)]
    in_order = list(stories.batches(texts, 2))
    assert [len(b.tokens) for b in in_order] == [2, 2, 1]
    rows = [(x, y) for b in in_order for x, y in zip(b.tokens, b.targets, strict=True)]
    for text, (inputs, targets) in zip(texts, rows, strict=True):
        ids = stories.encode(text)
        kept = targets[targets != IGNORE].tolist()
        assert kept == [*ids, stories.END]
        assert inputs[: len(kept)].tolist() == [stories.END, *ids]
        assert set(inputs[len(kept) :].tolist()) <= {stories.END}
    generator = torch.Generator().manual_seed(0)
    shuffled = [row.tolist() for b in stories.batches(texts, 1, generator) for row in b.tokens]
    alone = [row.tolist() for b in stories.batches(texts, 1) for row in b.tokens]
    assert shuffled != alone and sorted(shuffled) == sorted(alone)


def test_bad_arguments():
    with pytest.raises(ValueError, match="n=-1: expected the number of stories"):
        stories.stories(-1, seed=0)
    with pytest.raises(ValueError, match="'train': -2"):
        stories.dataset(-2, 1, 1, seed=0)
    with pytest.raises(ValueError, match="'computer' is in no story"):
        stories.encode("One computer.")
    with pytest.raises(ValueError, match="id 100000: expected 0 to"):
        stories.decode([100_000])
    with pytest.raises(ValueError, match="token 1 is 'Mia', expected"):
        stories.next_token_probabilities(["one", "Mia"])
    with pytest.raises(ValueError, match="batch_size=0"):
        next(stories.batches(["One."], 0))


def test_bad_grammars():
    with pytest.raises(ValueError, match="alternatives must begin with different fixed words"):
        Grammar(["a b", "a c"], {})
    with pytest.raises(ValueError, match="alternatives must begin with different fixed words"):
        Grammar(["{x:name} b", "a c"], SMALL_WORDS)
    with pytest.raises(ValueError, match="no class 'nme'; there are name"):
        Grammar(["a {x:nme}"], SMALL_WORDS)
    with pytest.raises(ValueError, match="words stand twice in the classes: pie"):
        Grammar(["a"], {"x": [Word("pie")], "y": [Word("pie")]})
