"""Quality rules, language, personal data and mixtures, against texts written by hand."""

import math
import string
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.data.cleaning import (
    GOPHER_RULES,
    failed_rules,
    language,
    mask_pii,
    mixture_weights,
    passes_quality,
    quality_signals,
)

PROSE = (
    "The river rises in the hills above the town and runs for forty miles to the sea. "
    "Most of its water comes from three small lakes that lie to the north. In a wet winter "
    "it floods the fields with brown mud, and farmers have to move their cattle to higher "
    "ground. A stone bridge, built by monks, is still used to cross it."
)


def test_prose_passes_and_each_rule_has_a_text_that_breaks_it():
    assert passes_quality(PROSE)
    broken = {
        "words": "The river is to the north.",
        "mean_word_length": "a b c d e f " * 20,
        "symbols_per_word": PROSE.replace(" the", " # the").replace(" a", "... a"),
        "bullet_lines": "\n".join("- " + line for line in PROSE.split(". ")),
        "ellipsis_lines": PROSE.replace(". ", " ...\n"),
        "alphabetic_words": PROSE + " 17 39 48 22" * 20,
        "stop_words": PROSE.replace("the", "yon").replace("The", "Yon"),
        "duplicate_lines": (PROSE + "\n") * 3,
        "top_bigram": PROSE + " buy now" * 20,
        "duplicate_5grams": PROSE + " " + PROSE,
    }
    assert set(broken) == set(GOPHER_RULES)
    broken["stop_words"] = "yon river rises in yon hills above yon town. " * 12
    for rule, text in broken.items():
        assert rule in failed_rules(text), rule
        assert not passes_quality(text)


def test_signals_counted_by_hand():
    signals = quality_signals("- the cat # sat ...\nto be 42\nto be 42")
    # words: - the cat # sat ... to be 42 to be 42
    assert signals["words"] == 12
    assert signals["mean_word_length"] == pytest.approx(26 / 12)
    assert signals["symbols_per_word"] == pytest.approx(2 / 12)
    assert signals["bullet_lines"] == pytest.approx(1 / 3)
    assert signals["ellipsis_lines"] == pytest.approx(1 / 3)
    assert signals["alphabetic_words"] == pytest.approx(7 / 12)
    assert signals["stop_words"] == 3
    assert signals["duplicate_lines"] == pytest.approx(1 / 3)
    assert signals["top_bigram"] == pytest.approx(2 * 4 / 26)
    assert signals["duplicate_5grams"] == 0
    twice = quality_signals("one two three four five one two three four five six")
    assert twice["duplicate_5grams"] == pytest.approx(10 / 11)


@given(st.text())
def test_signals_are_finite_and_fractions_are_fractions(text):
    signals = quality_signals(text)
    assert set(signals) == set(GOPHER_RULES)
    assert all(math.isfinite(value) and value >= 0 for value in signals.values())
    for name in ("bullet_lines", "ellipsis_lines", "alphabetic_words", "duplicate_lines"):
        assert signals[name] <= 1
    assert signals["top_bigram"] <= 1 and signals["duplicate_5grams"] <= 1


def test_a_rule_about_nothing_is_refused():
    with pytest.raises(ValueError, match="no signal called 'wrods', expected one of"):
        failed_rules(PROSE, {"wrods": (1, 2)})


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "The children walked to the market with their mother in the morning."),
        ("fr", "Les enfants sont allés au marché avec leur mère dans la matinée."),
        ("es", "Los niños fueron al mercado con su madre por la mañana y compraron pan."),
        ("de", "Die Kinder gingen am Morgen mit der Mutter auf den Markt und kauften Brot."),
        ("it", "I bambini sono andati al mercato con la madre e il padre della bambina."),
        ("pt", "As crianças foram ao mercado com a mãe e não compraram pão da padaria."),
        ("nl", "De kinderen gingen met hun moeder naar de markt en het was niet ver."),
        ("zh", "孩子们早上和母亲一起去市场买面包。"),
        ("ja", "東京都知事選挙は七月に実施される。"),
        ("ko", "아이들은 아침에 어머니와 함께 시장에 갔다."),
        ("ru", "Утром дети пошли с матерью на рынок."),
        ("und", "12 + 30 = 42"),
        ("und", "Zxq wvk brrt"),
        ("und", ""),
    ],
)
def test_language_of_sentences_a_reader_can_check(code, text):
    assert language(text) == code


@given(st.ip_addresses(v=4))
def test_every_ipv4_address_is_masked(address):
    assert mask_pii(f"from {address}, again") == "from <IP>, again"


@given(st.ip_addresses(v=6).map(str).filter(lambda s: any(map(str.isdigit, s))))
def test_every_ipv6_address_is_masked(address):
    assert mask_pii(f"from {address} again") == "from <IP> again"


NAME = st.text(string.ascii_letters + string.digits, min_size=1, max_size=9)


@given(NAME, NAME, NAME, st.sampled_from([".", "_", "+", "-"]))
def test_every_plain_email_is_masked(first, last, host, joint):
    assert mask_pii(f"(write {first}{joint}{last}@{host}.org.)") == "(write <EMAIL>.)"


@pytest.mark.parametrize(
    "number",
    ["+44 20 7946 0958", "+1-555-010-4477", "+49 (30) 901820", "(555) 010-4477", "555.010.4477"],
)
def test_phone_numbers_are_masked(number):
    assert mask_pii(f"Call {number}.") == "Call <PHONE>."


@pytest.mark.parametrize(
    "text",
    [
        "on 2024-01-02 at 12:30:45",
        "from 1999-2004 it cost 1,234,567.89",
        "version 3.11.2 or v1.2.3.4",
        "std::vector and a::b",
        "999.999.999.999",
        "ISBN 978-0-306-40615-7",
        "f(x) = x @ w",
    ],
)
def test_numbers_that_belong_to_nobody_stay(text):
    assert mask_pii(text) == text


@given(
    st.dictionaries(NAME, st.floats(1e-3, 1e12), min_size=1, max_size=6),
    st.floats(0.05, 100),
)
def test_mixture_weights_are_a_distribution_that_keeps_the_order(sizes, temperature):
    weights = mixture_weights(sizes, temperature)
    assert math.isclose(sum(weights.values()), 1)
    assert list(weights) == list(sizes)
    by_size = sorted(sizes, key=sizes.__getitem__)
    assert all(weights[a] <= weights[b] + 1e-12 for a, b in pairwise(by_size))


def test_mixture_weights_by_hand():
    sizes = {"web": 800, "code": 200}
    assert mixture_weights(sizes) == pytest.approx({"web": 0.8, "code": 0.2})
    assert mixture_weights(sizes, 2) == pytest.approx({"web": 2 / 3, "code": 1 / 3})
    assert mixture_weights(sizes, 1e9) == pytest.approx({"web": 0.5, "code": 0.5})


def test_mixture_weights_refuse_what_has_no_meaning():
    with pytest.raises(ValueError, match="temperature is 0, expected a number above 0"):
        mixture_weights({"web": 1}, 0)
    with pytest.raises(ValueError, match="source 'web' has size 0, expected more than 0"):
        mixture_weights({"web": 0})
    with pytest.raises(ValueError, match="no sources"):
        mixture_weights({})
