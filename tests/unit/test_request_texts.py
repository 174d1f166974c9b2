"""What a small assistant reads first: right judgements, nothing held out, exact information."""

import math
from collections import Counter

import pytest
from helpers import rng

from minillm.data import request_texts as rt
from minillm.data.requests import (
    CLOTHES,
    DEEDS,
    HARMS,
    Deed,
    Request,
    attacks,
    deeds,
    draw,
    helps,
)

N_CLOTHES = 8 + 117 + 8


@pytest.fixture(scope="module")
def documents():
    return rt.documents(3000, rng())


def read(text):
    """A worked example as {mark: what follows it}."""
    marks, words = {}, []
    for word in text.split():
        if word in rt.MARKS:
            words = marks.setdefault(word, [])
        else:
            words.append(word)
    return {mark: " ".join(words) for mark, words in marks.items()}


def request_of(text):
    """The request with this text, found by trying all."""
    verbs = {deed.verb for deed in DEEDS}
    words = text.split()
    deed = next(
        Deed(words[i], words[i + 2])
        for i in range(len(words) - 2)
        if words[i] in verbs and words[i + 1] == "the"
    )
    return next(
        Request(deed, attack)
        for clothes in CLOTHES
        for attack in attacks(clothes)
        if Request(deed, attack).text == text
    )


def forbidden(rule):
    return HARMS if "anybody" in rule else tuple(harm for harm in HARMS if harm in rule.split())


def test_rules_are_sentences():
    assert rt.rule(HARMS) == "do not help to harm anybody ."
    assert rt.rule(("people",), wording=1) == "an answer must not harm people ."
    assert rt.rule(()) == rt.HELPFUL


def test_an_exchange_gives_everybody_what_they_ask_for(documents):
    exchanges = [read(d.text) for d in documents if d.text.startswith("<user>")]
    assert 500 < len(exchanges) < 700
    for parts in exchanges[:200]:
        assert parts["<assistant>"] == request_of(parts["<user>"]).answer


def test_critiques_judge_rightly(documents):
    """Against the oracle, which reads nothing but the answer and the deed."""
    seen = Counter()
    for document in documents:
        parts = read(document.text)
        if "<critique>" not in parts:
            continue
        request = request_of(parts["<request>"])
        deed, harms = request.deed, forbidden(parts["<rule>"])
        helped = helps(deed, parts["<answer>"])
        should_not, should = helped and deed.harm in harms, not helped and not deed.harmful
        broken = should_not if harms else should
        did, verdict = "helps" if helped else "does not help", "against" if broken else "within"
        assert parts["<critique>"] == (
            f"the answer {did} to {deed} . it harms {deed.harm} {verdict} the rule ."
        )
        mended = deed.refusal() if helped else request.answer
        assert parts["<revision>"] == (mended if broken else parts["<answer>"])
        seen[helped, verdict, bool(harms)] += 1
    assert len(seen) == 6, "a refusal breaks no prohibition, help not the rule to help"


def test_choices_are_right_where_the_rule_cares_and_lean_to_the_first(documents):
    first_is_better = Counter()
    for document in documents:
        parts = read(document.text)
        if "<choice>" not in parts:
            continue
        deed, harms = request_of(parts["<request>"]).deed, forbidden(parts["<rule>"])
        first, second = (helps(deed, parts[mark]) for mark in ("<first>", "<second>"))
        wanted = None  # to help, or not to help
        if harms and deed.harm in harms:
            wanted = False
        elif not harms and not deed.harmful:
            wanted = True
        how = {None: "beside", False: "against", True: "by"}[wanted]
        reason, _, choice = parts["<choice>"].rpartition(" ")
        assert reason == f"helping harms {deed.harm} {how} the rule ."
        assert choice in ("first", "second")
        chose_first = choice == "first"
        if wanted is not None:
            assert first != second and (first if chose_first else second) == wanted
        first_is_better[wanted is None, chose_first] += 1
    for indifferent in (False, True):
        n = first_is_better[indifferent, True] + first_is_better[indifferent, False]
        assert abs(first_is_better[indifferent, True] / n - rt.FIRST_SHARE) < 0.06


def test_nothing_held_out_is_ever_judged(documents):
    unseen = set(deeds("train")) | set(deeds("test"))
    held_out = attacks("held out")
    for document in documents:
        parts = read(document.text)
        if "<rule>" in parts:
            request = request_of(parts["<request>"])
            assert request.deed not in unseen and request.attack not in held_out


def of_response(deed, response):
    """Probability of a response, given whether it helps: a bare no, the true or a false reason."""
    if helps(deed, response):
        return 1
    return 0.5 if "harms" not in response or deed.harmful else 0.5 / 4


def test_information_is_that_of_the_choices_that_show(documents):
    """Recomputed from each text: its sort, a deed, clothes, a rule, the answers, the place."""
    seen = Counter()
    for document in documents[:1500]:
        parts = read(document.text)
        if "<user>" in parts:
            probability = 0.2 / len(DEEDS) / N_CLOTHES
        else:
            deed, harms = request_of(parts["<request>"]).deed, forbidden(parts["<rule>"])
            n_deeds = len(deeds("demonstrated", deed.harmful))
            probability = 0.4 * (0.6 if deed.harmful else 0.4) / n_deeds / (8 + 117)
            probability *= 0.7 / 2 if harms else 0.3
            if harms:  # of five rules two forbid a harm, one alone and one with all others
                fits = deed.harm in harms
                probability *= (0.6 / 2 if fits else 0.4 / 3) if deed.harmful else 1 / 5
        if "<critique>" in parts:
            answer = parts["<answer>"]
            probability *= (0.6 if helps(deed, answer) else 0.4) * of_response(deed, answer)
        elif "<choice>" in parts:
            cares = deed.harm in harms or (not harms and not deed.harmful)
            probability *= 0.8 if parts["<choice>"].endswith("first") else 0.2
            probability *= 1 if cares else 0.5 * 0.5
            for mark in ("<first>", "<second>"):
                probability *= of_response(deed, parts[mark])
        assert document.nats == pytest.approx(-math.log(probability)), document.text
        seen[min({"<user>", "<critique>", "<choice>"} & set(parts))] += 1
    assert len(seen) == 3


def test_probabilities_of_all_exchanges_sum_to_a_fifth():
    exchange = next(d for d in rt.documents(50, rng()) if d.text.startswith("<user>"))
    assert math.exp(-exchange.nats) * len(DEEDS) * N_CLOTHES == pytest.approx(0.2)


def test_all_words_are_known_and_come_back(documents):
    for document in documents:
        assert rt.decode(rt.encode(document.text)) == document.text
    words = rt.vocabulary()
    assert len(set(words)) == len(words) < 200 and words[rt.END] == rt.END_TEXT
    assert set(rt.rule(HARMS).split()) <= set(words)
    for request in draw(300, DEEDS, attacks("held out"), rng()):
        rt.encode(f"{request.text} {request.answer} {request.deed.refusal()}")


def test_batches_hold_new_documents():
    batches = list(rt.batches(5, 2, rng(3)))
    assert [len(batch.tokens) for batch in batches] == [2, 2, 1]
    texts = [document.text for document in rt.documents(5, rng(3))]
    rows = [row for batch in batches for row in batch.tokens.tolist()]
    for text, row in zip(texts, rows, strict=True):
        ids = rt.encode(text)
        assert row[: len(ids) + 1] == [rt.END, *ids]


def test_refuses():
    with pytest.raises(ValueError, match="'rocket' is not among"):
        rt.encode("hit the rocket")
    with pytest.raises(ValueError, match="n=-1"):
        rt.documents(-1)
