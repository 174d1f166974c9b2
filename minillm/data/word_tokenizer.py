"""A tokenizer of whole words, for very small models of generated instructions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from minillm.data.instruction_steps import NOUNS, STEPS, TABLE

END_TEXT = "<|endoftext|>"
_SPECIAL = (END_TEXT, "<|im_start|>", "<|im_end|>")
_PIECE = re.compile(r"\n|[A-Za-z]+|[.,:]")


class WordTokenizer:
    """Whole words as tokens, for all texts of `instructions.py`: a vocabulary of a few hundred.

    It stands in for `Tokenizer` wherever a text is encoded, decoded or chatted in. Spaces are not
    kept, and neither is the capital letter that begins a sentence.

    Attributes:
        special_tokens: name → id of the end of a text and of ChatML's two markers.
        name: for messages to people.
    """

    name = "words"

    def __init__(self):
        self._tokens = [*_SPECIAL, *_vocabulary()]
        self._ids = {token: i for i, token in enumerate(self._tokens)}
        self.special_tokens = {token: self._ids[token] for token in _SPECIAL}

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    @property
    def end_of_text(self) -> int:
        return self.special_tokens[END_TEXT]

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special tokens are never read from text.

        Raises:
            ValueError: names the first thing that is no word of this vocabulary.
        """
        if strange := _PIECE.sub(" ", text).split():
            raise ValueError(f"{strange[0]!r} is none of the words and signs known here")
        ids = []
        for piece in _PIECE.findall(text):
            word = piece if piece in self._ids else piece[0].lower() + piece[1:]
            if word not in self._ids:
                raise ValueError(f"the word {piece!r} is not among the {len(self._ids)} known here")
            ids.append(self._ids[word])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The words with a space between them, signs and line ends without."""
        return b"".join(self.token_bytes(i) for i in ids).decode().strip(" ").replace("\n ", "\n")

    def token_bytes(self, token: int) -> bytes:
        """One token as it stands in a text: words and special tokens behind a space."""
        text = self._tokens[token]
        return (text if text in ".,:\n" else f" {text}").encode()


@cache
def _vocabulary() -> tuple[str, ...]:
    """All words and signs of instructions, answers, documents and templates, in a fixed order."""
    texts = ["\n . , : please then words take if you get now system user assistant"]
    texts += [clause for step in STEPS.values() for clause in step.clauses]
    for column in zip(*TABLE, strict=True):
        texts.append(" ".join(column))
    texts += [" ".join(NOUNS).upper(), "here are some"]
    return tuple(dict.fromkeys(piece for text in texts for piece in _PIECE.findall(text)))
