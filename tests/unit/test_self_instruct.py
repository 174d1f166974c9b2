"""Self-Instruct: what is written, answered, kept and dropped, and why."""

from itertools import combinations

import pytest
import torch
from helpers import rng

from minillm.adapt import self_instruct as si
from minillm.adapt.self_instruct import Pair, Rules, opening, propose, respond, rouge_l, sift
from minillm.data.instructions import SINGLES, tasks
from minillm.data.word_tokenizer import WordTokenizer
from minillm.infer.chat import CHATML
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer

SEEDS = [
    "Reverse the words: dog cat sun",
    "Use the plural: moon star",
    "Take the last word: bed key",
]


@pytest.fixture(scope="module")
def tokenizer():
    return WordTokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    config = llama_config(tokenizer.vocab_size, d_model=16, n_layers=1, n_heads=2, max_length=96)
    return Transformer(config, rng())


def longest_by_trying(x, y):
    """The longest common subsequence, by trying all subsequences of x."""
    for n in range(len(x), 0, -1):
        for places in combinations(range(len(x)), n):
            rest = iter(y)
            if all(x[i] in rest for i in places):
                return n
    return 0


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    random = rng(1)
    for _ in range(60):
        x, y = (
            torch.randint(4, (int(torch.randint(1, 8, (), generator=random)),), generator=random)
            for _ in range(2)
        )
        a, b = ([f"w{i}" for i in ids.tolist()] for ids in (x, y))
        n = longest_by_trying(a, b)
        precision, recall = n / len(a), n / len(b)
        f = 2 * precision * recall / (precision + recall) if n else 0.0
        assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(f)
    assert rouge_l("Say it", "say it") == 1 and rouge_l("", "say") == 0


def test_overlap_is_found_as_if_all_were_compared(monkeypatch):
    texts = [task.instruction for task in tasks(40, SINGLES, rng())]
    for limit in (0.3, 0.5, 0.7):
        for a, b in combinations(texts, 2):
            assert si._overlap_reaches(a, b, limit) == (rouge_l(a, b) >= limit)


def test_each_reason_to_drop_a_pair():
    rules = Rules(n_words=(3, 8), refused=("knife",), per_kind=2)
    pairs = [
        ("Say hello", "hello"),
        ("Say " * 9, "a"),
        ("Sharpen the blade: sun", "KNIFE."),
        ("Drop the knife: sun, moon", "sun"),
        ("Name a big city", None),
        ("Name a big city", ""),
        ("Name a big city", "name a big city"),
        ("Reverse the words: dog cat moon", "moon cat dog"),
        ("Take the first: house tree king", "house"),
        ("Please take the door: open wide", "door"),
        ("Reverse all letters now, slowly", "ylwols"),
    ]
    harvest = sift(pairs, SEEDS, rules)
    assert {reason: len(dropped) for reason, dropped in harvest.dropped.items()} == {
        "length": 2,
        "refused": 2,
        "no answer": 3,
        "too similar": 1,  # five words of six in common with a seed
        "too many of its kind": 1,  # "take the": one seed and one kept
    }
    kept = ["Take the first: house tree king", "Reverse all letters now, slowly"]
    assert [pair.instruction for pair in harvest.kept] == kept
    assert harvest.kept[0].messages == [("user", kept[0]), ("assistant", "house")]


def test_what_is_kept_counts_for_what_comes_next():
    pair = ("Name a big city", "Rome")
    harvest = sift([pair, pair], SEEDS, Rules())
    assert harvest.kept == [Pair(*pair)]
    assert harvest.dropped == {"too similar": [Pair(*pair)]}
    at_limit = ("Name a big country", "Peru")  # three of four words
    assert len(sift([pair, at_limit], SEEDS, Rules(max_overlap=0.75)).kept) == 1
    assert len(sift([pair, at_limit], SEEDS, Rules(max_overlap=0.76)).kept) == 2


def test_kinds_go_by_the_first_words():
    assert opening("Please reverse: dog") == opening("reverse dog") == "reverse dog"
    assert opening("Use the plural") == "use the"


def test_the_writer_sees_instructions_and_writes_one_line(tokenizer, model, monkeypatch):
    seen = {}

    def stand_in(model, prompts, **settings):
        seen.update(settings, prompts=prompts)
        start = tokenizer.special_tokens["<|im_start|>"]
        return [[start, *tokenizer.encode("use capitals: dog\ntake the")] for _ in prompts]

    monkeypatch.setattr(si, "generate", stand_in)
    lines = propose(model, tokenizer, SEEDS, 20, shown=2, generator=rng())
    assert lines == ["use capitals: dog"] * 20
    assert seen["stop_tokens"] == (tokenizer.end_of_text,)
    for prompt in seen["prompts"]:
        assert prompt[0] == tokenizer.end_of_text and prompt[-1] == tokenizer.encode("\n")[0]
        shown = tokenizer.decode(prompt[1:-1]).split("\n")
        assert len(set(shown)) == 2 and set(shown) <= {text.lower() for text in SEEDS}
    assert len({tuple(prompt) for prompt in seen["prompts"]}) > 3


def test_answers_must_end_and_agree(tokenizer, model, monkeypatch):
    dog, cat = tokenizer.encode("dog cat")
    canned = [[dog], [dog], [dog], [cat], [dog] * 4, [dog] * 4]
    monkeypatch.setattr(si, "generate", lambda *args, **settings: canned)
    ask = ["take: dog", "take: cat", "take: sun"]
    answers = respond(model, tokenizer, CHATML, ask, votes=2, max_new_tokens=4)
    assert answers == ["dog", None, None]
    canned = canned[1:4]
    answers = respond(model, tokenizer, CHATML, ask, max_new_tokens=4)
    assert answers == ["dog", "dog", "cat"]
    canned = [[dog, tokenizer.special_tokens["<|im_start|>"]]]
    assert respond(model, tokenizer, CHATML, ask[:1], max_new_tokens=4) == [None]
    assert respond(model, tokenizer, CHATML, []) == []


def test_one_answer_is_the_likeliest_and_votes_are_sampled(tokenizer, model):
    ask = [task.instruction for task in tasks(6, SINGLES, rng())]
    greedy = [
        respond(model, tokenizer, CHATML, ask, generator=rng(s), max_new_tokens=50) for s in (0, 1)
    ]
    assert greedy[0] == greedy[1]
    sampled = respond(model, tokenizer, CHATML, ask, votes=3, generator=rng(), max_new_tokens=50)
    assert sampled == [None] * 6  # a model of random weights never says the same twice


def test_the_pool_grows_and_guides_the_next_round(tokenizer, model, monkeypatch):
    pools = []

    def write(model, tokenizer, pool, n, **settings):
        pools.append(list(pool))
        i = 10 * len(pools)
        return ["", SEEDS[0], *(" ".join(["say"] * j) for j in (i, i + 9))]

    monkeypatch.setattr(si, "propose", write)
    monkeypatch.setattr(si, "respond", lambda m, t, template, asked, **s: ["dog"] * len(asked))
    rules = Rules(n_words=(3, 999), max_overlap=0.99)
    run = lambda n, rounds: si.self_instruct(  # noqa: E731
        model, model, tokenizer, CHATML, SEEDS, n, rules=rules, max_rounds=rounds
    )
    harvest = run(3, 9)
    assert len(harvest.kept) == 3 and len(pools) == 2
    assert harvest.dropped == {"too similar": [Pair(SEEDS[0], "dog")] * 2}
    assert pools[0] == SEEDS and pools[1] == [*SEEDS, *(p.instruction for p in harvest.kept[:2])]
    assert len(run(100, 2).kept) == 4


def test_the_whole_loop_runs_and_repeats(tokenizer, model):
    runs = [
        si.self_instruct(
            model, model, tokenizer, CHATML, SEEDS, 5, per_round=8, max_rounds=2, generator=rng()
        )
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert runs[0].dropped


def test_bad_input_is_refused(tokenizer, model):
    with pytest.raises(ValueError, match="max_overlap=0: expected above 0"):
        Rules(max_overlap=0)
    with pytest.raises(ValueError, match="fewest and most"):
        Rules(n_words=(5, 3))
    with pytest.raises(ValueError, match="shown=4: expected 1 to 3"):
        propose(model, tokenizer, SEEDS, 1, shown=4)
    with pytest.raises(ValueError, match="votes=0"):
        respond(model, tokenizer, CHATML, SEEDS, votes=0)
    with pytest.raises(ValueError, match="1 seeds, n=1"):
        si.self_instruct(model, model, tokenizer, CHATML, SEEDS[:1], 1)
