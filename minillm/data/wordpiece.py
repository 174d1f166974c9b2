"""WordPiece, the tokenizer of BERT and of the sentence encoders that descend from it.

Two steps. First the text is cleaned and cut into words: no capitals, no accents, punctuation
marks and Chinese characters stand alone. Then each word is spelt with the longest known pieces,
from left to right; a piece that continues a word is written with ## in front of it. Unlike the
byte-level BPE of `tokenizer.py` this loses capitals, accents and spaces, and a word that cannot
be spelt becomes [UNK].
"""

from __future__ import annotations

import json
import os
import string
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

_CONTINUES = "##"
_LONGEST_WORD = 100  # characters; a longer word becomes [UNK] without being looked at

# Unified ideographs and their compatibility forms; not Hangul, Hiragana or Katakana, which are
# written in words.
_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class _Table(dict):
    """A table for `str.translate` that works out a character when it first meets it."""

    def __init__(self, rule):
        self.rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = self.rule(chr(code))
        return self[code]


def _clean(character: str) -> str:
    """White space to a blank, control characters to nothing, blanks around Chinese ones."""
    if character in "\t\n\r":
        return " "
    if character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cf", "Co"):
        return ""
    if character.isspace():
        return " "
    if any(first <= ord(character) <= last for first, last in _CHINESE):
        return f" {character} "
    return character


def _set_apart(character: str) -> str:
    """Blanks around a punctuation mark; ASCII symbols such as $ and + count as such."""
    if character in string.punctuation or unicodedata.category(character).startswith("P"):
        return f" {character} "
    return character


def _plain(character: str) -> str:
    """Lower case without accents (the text is decomposed already), punctuation set apart."""
    if unicodedata.category(character) == "Mn":
        return ""
    return "".join(_set_apart(lower) for lower in character.lower())


_CLEAN, _SET_APART, _PLAIN = _Table(_clean), _Table(_set_apart), _Table(_plain)


def split_words(text: str, lowercase: bool = True) -> list[str]:
    """Words, punctuation marks and Chinese characters, in their order.

    >>> split_words("Où est-il? 北京!")
    ['ou', 'est', '-', 'il', '?', '北', '京', '!']
    """
    text = text.translate(_CLEAN)
    if not lowercase:
        return text.translate(_SET_APART).split()
    return unicodedata.normalize("NFD", text).translate(_PLAIN).split()


class WordPiece:
    """Text to ids of word pieces (Devlin et al. 2019, §3; Wu et al. 2016, §4.1).

    Args:
        vocabulary: the pieces in the order of their ids, among them [PAD], [UNK], [CLS], [SEP]
            and [MASK].
        lowercase: also removes accents.

    Text never becomes a special token: "[SEP]" typed by a user is three ordinary words.

    Raises:
        ValueError: a piece is listed twice, or a special token is missing.
    """

    def __init__(self, vocabulary: Sequence[str], lowercase: bool = True):
        self.vocabulary = list(vocabulary)
        self.lowercase = lowercase
        self._ids = {piece: i for i, piece in enumerate(self.vocabulary)}
        if len(self._ids) < len(self.vocabulary):
            raise ValueError("a piece is listed twice: every piece needs an id of its own")
        names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        missing = [name for name in names if name not in self._ids]
        if missing:
            raise ValueError(f"the vocabulary lacks {', '.join(missing)}")
        self.pad, self.unknown, self.cls, self.sep, self.mask = (self._ids[n] for n in names)
        self._spelt: dict[str, list[int]] = {}  # words repeat: each is spelt once

    @classmethod
    def from_huggingface(cls, folder: str | os.PathLike) -> WordPiece:
        """Read ``vocab.txt`` (one piece a line) and the casing from ``tokenizer_config.json``."""
        folder = Path(folder)
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        vocabulary = lines[:-1] if lines[-1] == "" else lines
        return cls(vocabulary, lowercase=settings.get("do_lower_case", True))

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text, ## where a word goes on; no special tokens but [UNK]."""
        return [self.vocabulary[i] for i in self._encode(text)]

    def encode(self, text: str, max_length: int | None = None) -> list[int]:
        """Ids of [CLS], the pieces of the text, [SEP].

        Args:
            max_length: most ids in all; the end of a longer text is cut off.

        Raises:
            ValueError: max_length leaves no room for [CLS] and [SEP].
        """
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length={max_length}: expected 2 or more, for [CLS] and [SEP]")
        ids = self._encode(text)
        if max_length is not None:
            ids = ids[: max_length - 2]
        return [self.cls, *ids, self.sep]

    def decode(self, ids: Iterable[int]) -> str:
        """Words joined by blanks, special tokens left out. What encoding lost stays lost.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        words: list[str] = []
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"id {i}: expected 0 to {self.vocab_size - 1}")
            piece = self.vocabulary[i]
            if words and piece.startswith(_CONTINUES):
                words[-1] += piece.removeprefix(_CONTINUES)
            elif i not in (self.pad, self.cls, self.sep):
                words.append(piece)
        return " ".join(words)

    def _encode(self, text: str) -> list[int]:
        return [i for word in split_words(text, self.lowercase) for i in self._spell(word)]

    def _spell(self, word: str) -> list[int]:
        """The longest piece the word begins with, then the longest that goes on from there, …"""
        if word in self._spelt:
            return self._spelt[word]
        ids, start = [], 0
        while start < len(word):
            prefix = _CONTINUES if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if prefix + word[start:e] in self._ids), None)
            if end is None or len(word) > _LONGEST_WORD:
                ids = [self.unknown]
                break
            ids.append(self._ids[prefix + word[start:end]])
            start = end
        self._spelt[word] = ids
        return ids
