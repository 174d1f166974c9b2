"""WordPiece on a vocabulary small enough to spell by hand; tests/parity has the real one."""

import unicodedata

import pytest

from minillm.data.wordpiece import WordPiece, split_words

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = ["un", "##aff", "##able", "##a", "##ffable", "able", "cafe", "Cafe", "[", "]", "sep", "!"]


@pytest.fixture
def tokenizer():
    return WordPiece(SPECIAL + PIECES)


def test_takes_the_longest_piece_each_time(tokenizer):
    # "##a" followed by "##ffable" would also spell it, but "##aff" is longer than "##a".
    assert tokenizer.pieces("unaffable") == ["un", "##aff", "##able"]
    assert tokenizer.pieces("able") == ["able"]  # not ##able: nothing comes before


def test_never_goes_back_to_a_shorter_piece():
    # "abc" = "a" + "##bc", but greedy takes "ab" first and then finds no "##c".
    tokenizer = WordPiece([*SPECIAL, "a", "ab", "##bc"])
    assert tokenizer.pieces("abc ab") == ["[UNK]", "ab"]


def test_a_word_is_unknown_as_a_whole(tokenizer):
    assert tokenizer.pieces("unx able") == ["[UNK]", "able"]


def test_a_word_of_over_a_hundred_characters_is_unknown():
    tokenizer = WordPiece([*SPECIAL, "a", "##a"])
    assert len(tokenizer.pieces("a" * 100)) == 100
    assert tokenizer.pieces("a" * 101) == ["[UNK]"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Où est-il?", ["ou", "est", "-", "il", "?"]),
        ("costs $5+tax", ["costs", "$", "5", "+", "tax"]),
        ("北京is大", ["北", "京", "is", "大"]),
        ("ひらがな 한국", ["ひらかな", "한국"]),  # decomposed, ゛ and ゜ are accents
        ("a\tb\nc\u00a0d\u3000e", ["a", "b", "c", "d", "e"]),
        ("zero\u200bwidth\x00bell\x07\ufffd", ["zerowidthbell"]),
        ("ΣΑΣ İ ẞ", ["σασ", "i", "ß"]),
        ("", []),
    ],
)
def test_splits_into_words(text, words):
    assert [unicodedata.normalize("NFC", word) for word in split_words(text)] == words


def test_cased_keeps_capitals_and_accents():
    assert split_words("Où, Café", lowercase=False) == ["Où", ",", "Café"]
    assert WordPiece(SPECIAL + PIECES, lowercase=False).pieces("Cafe Café") == ["Cafe", "[UNK]"]


def test_encode_frames_and_cuts(tokenizer):
    ids = [tokenizer.vocabulary.index(p) for p in ("[CLS]", "un", "##aff", "##able", "[SEP]")]
    assert tokenizer.encode("Unaffable") == ids
    assert tokenizer.encode("Unaffable", max_length=4) == [*ids[:3], ids[-1]]
    assert tokenizer.encode("", max_length=2) == [tokenizer.cls, tokenizer.sep]
    with pytest.raises(ValueError, match="max_length=1"):
        tokenizer.encode("able", max_length=1)


def test_text_never_becomes_a_special_token(tokenizer):
    assert tokenizer.pieces("able[SEP]") == ["able", "[", "sep", "]"]


def test_decode_joins_pieces(tokenizer):
    assert tokenizer.decode(tokenizer.encode("Unaffable café!") + [tokenizer.pad]) == (
        "unaffable cafe !"
    )
    with pytest.raises(ValueError, match="id 17"):
        tokenizer.decode([17])


def test_reads_a_folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(SPECIAL + PIECES) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    tokenizer = WordPiece.from_huggingface(tmp_path)
    assert tokenizer.vocabulary == SPECIAL + PIECES
    assert not tokenizer.lowercase


def test_refuses_bad_vocabularies():
    with pytest.raises(ValueError, match="listed twice"):
        WordPiece([*SPECIAL, "a", "a"])
    with pytest.raises(ValueError, match=r"lacks \[CLS\], \[MASK\]"):
        WordPiece(["[PAD]", "[UNK]", "[SEP]"])
