"""Tokens that become text piece by piece."""

import pytest

from minillm.data.tokenizer import Tokenizer
from minillm.infer.text import Text


def text_of(pieces: list[bytes], stops=()):
    text = Text(dict(enumerate(pieces)).__getitem__, stops)
    given = [text.add(token) for token in range(len(pieces))]
    return [*given, text.end()], text


def test_half_a_character_waits_for_its_other_half():
    assert text_of([b"a\xe4", b"\xb8", b"\xadb"])[0] == ["a", "", "中b", ""]
    assert text_of([b"a\xe4"])[0] == ["a", "\ufffd"]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_stop_is_found_wherever_it_is_cut_and_never_given_out(cut):
    whole = b"one STOP two STAR"
    given, text = text_of([whole[:cut], whole[cut:12], whole[12:]], ("STOP", "two"))
    assert "".join(given) == "one " and text.stopped and text.n_tokens == 3


def test_what_only_looked_like_a_stop_is_given_out():
    assert "".join(text_of([b"S", b"T", b"A", b"ST"], ("STOP",))[0]) == "STAST"
    assert "".join(text_of([b"aaaab"], ("aab",))[0]) == "aa"
    assert "".join(text_of([b"aa", b"b"], ("aab",))[0]) == ""


def test_an_id_that_the_tokenizer_does_not_name_is_an_unknown_character():
    tokenizer = Tokenizer.train(["the cat"], 258)
    text = Text(tokenizer.token_bytes)
    assert text.add(tokenizer.vocab_size) + text.end() == "\ufffd"
