"""The tokenizer: text to token ids and back, without ever losing a byte.

The fast path hands whole texts to `tiktoken`, built from our own vocabulary; `fast=False` runs
the pure-Python encoder of `bpe.py`. Both give the same ids.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise

import regex
import tiktoken

from minillm.data import tokenizer_files
from minillm.data.bpe import (
    BYTE_ORDER,
    GPT2_PATTERN,
    GPT4_PATTERN,
    QWEN_PATTERN,
    SMOLLM_PATTERN,
    Merge,
    Pattern,
    all_come_out_whole,
    lossless,
    merge_piece,
    pretokenize,
    stages,
    train_bpe,
)

END_OF_TEXT = "<|endoftext|>"
_CHUNK = 1 << 15  # characters encoded at a time while streaming

# Where a stream may be cut. With the patterns named below a piece always ends between a
# character that is not white space and a blank, and between a letter and a punctuation mark;
# and nothing before such a place looks past it.
_CUT = regex.compile(r"(?r)(?<=\S)(?= )|(?<=\p{L})(?=[\p{P}\p{S}])")
_CUTTABLE = {stages(p) for p in (GPT2_PATTERN, GPT4_PATTERN, QWEN_PATTERN, SMOLLM_PATTERN)}


class Tokenizer:
    """Byte-level BPE over a vocabulary of ordinary tokens (bytes) and special tokens (names).

    tokens: bytes -> id. Without `merges`, two neighbours merge whenever their concatenation is
    a token, lower ids first (the rule of `tiktoken` files). With `merges`, only the listed
    pairs merge, in their order (the rule of `tokenizers` files).
    Special tokens are never produced from text unless `encode` is told to allow them.
    """

    def __init__(
        self,
        tokens: Mapping[bytes, int],
        *,
        merges: Sequence[Merge] | None = None,
        special_tokens: Mapping[str, int] | None = None,
        pattern: Pattern = GPT4_PATTERN,
        end_of_text: str | None = None,
        name: str = "bpe",
    ):
        self.special_tokens = dict(special_tokens or {})
        self.pattern = stages(pattern)
        self.name = name
        self.tokens = dict(tokens)
        self._merges = None if merges is None else list(merges)
        self._bytes = {i: token for token, i in self.tokens.items()}
        self._check_vocabulary()
        self._bytes |= {i: special.encode() for special, i in self.special_tokens.items()}
        if end_of_text is None and END_OF_TEXT in self.special_tokens:
            end_of_text = END_OF_TEXT
        if end_of_text is not None and end_of_text not in self.special_tokens:
            raise ValueError(f"end_of_text {end_of_text!r} is not among the special tokens")
        self._end_of_text = end_of_text
        self._known_bytes = bytes(b for b in range(256) if bytes([b]) in self.tokens)
        pretokenize("", self.pattern)  # an invalid pattern is refused now, not at the first text

    def _check_vocabulary(self) -> None:
        if len(self._bytes) != len(self.tokens):
            raise ValueError("two tokens share one id: every token needs an id of its own")
        if b"" in self.tokens or min(self._bytes, default=0) < 0:
            raise ValueError("tokens must be non-empty and ids must not be negative")
        if "" in self.special_tokens:
            raise ValueError("a special token must not be empty")
        numbers = list(self.special_tokens.values())
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"two special tokens share one id: {self.special_tokens}")
        for special, i in self.special_tokens.items():
            if i in self._bytes:
                raise ValueError(f"special token {special!r} has id {i} of {self._bytes[i]!r}")
        for left, right in self._merges or ():
            if not (left in self.tokens and right in self.tokens and left + right in self.tokens):
                raise ValueError(
                    f"merge {(left, right)} needs a token that is not in the vocabulary"
                )

    # Ways to make one ---------------------------------------------------------------------

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        pattern: Pattern = GPT4_PATTERN,
        progress: bool = False,
        name: str = "bpe",
    ) -> "Tokenizer":
        """Learn a vocabulary of `vocab_size` tokens, special tokens and the 256 bytes included.

        Ids: special tokens first, then the bytes in `BYTE_ORDER`, then the merges as learned;
        the same ids as the `tokenizers` library gives. A text that runs out of pairs gives a
        smaller vocabulary. Raises ValueError for a special token given twice, or a size too
        small for the bytes and special tokens.
        """
        special_tokens = list(special_tokens)
        if len(set(special_tokens)) < len(special_tokens):
            raise ValueError(f"special_tokens {special_tokens} name one token twice")
        first = len(special_tokens)
        if vocab_size < 256 + first:
            raise ValueError(
                f"vocab_size {vocab_size} must be at least {256 + first}: 256 bytes and "
                f"{first} special tokens"
            )
        merges = train_bpe(texts, vocab_size - first, pattern, progress)
        ordered = [bytes([b]) for b in BYTE_ORDER] + [left + right for left, right in merges]
        return cls(
            {token: i for i, token in enumerate(ordered, first)},
            merges=merges,
            special_tokens={special: i for i, special in enumerate(special_tokens)},
            pattern=pattern,
            name=name,
        )

    @classmethod
    def load(
        cls, path: str | os.PathLike, end_of_text: str | None = None, name: str | None = None
    ) -> "Tokenizer":
        """Read a Hugging Face `tokenizer.json`: ours or a published byte-level BPE one.

        The file does not say which special token ends a text: unless told, the usual names
        are tried. Raises ValueError if the file asks for more than byte-level BPE.
        """
        return cls(**tokenizer_files.read_huggingface(path, end_of_text, name))

    from_huggingface = load

    @classmethod
    def from_tiktoken(
        cls,
        path: str | os.PathLike,
        pattern: Pattern = GPT4_PATTERN,
        special_tokens: Mapping[str, int] | None = None,
        name: str | None = None,
    ) -> "Tokenizer":
        """See `tokenizer_files.read_tiktoken`. The file holds no pattern and no special tokens."""
        return cls(**tokenizer_files.read_tiktoken(path, pattern, special_tokens, name))

    @classmethod
    def from_tekken(cls, path: str | os.PathLike, name: str | None = None) -> "Tokenizer":
        """See `tokenizer_files.read_tekken` (Mistral)."""
        return cls(**tokenizer_files.read_tekken(path, name))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object], name: str | None = None) -> "Tokenizer":
        """See `tokenizer_files.read_gguf_metadata`."""
        return cls(**tokenizer_files.read_gguf_metadata(metadata, name))

    def save(self, path: str | os.PathLike) -> None:
        """Write a Hugging Face `tokenizer.json`, which the `tokenizers` library also reads."""
        tokenizer_files.write_huggingface(self, path)

    # The vocabulary -----------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Highest id + 1: the number of rows an embedding needs (some ids may be unused)."""
        return max(self._bytes, default=-1) + 1

    @property
    def end_of_text(self) -> int:
        """Id of the special token that ends a text. Raises ValueError if there is none."""
        if self._end_of_text is None:
            raise ValueError(
                f"tokenizer {self.name!r} has no end-of-text token among its special tokens "
                f"{list(self.special_tokens)[:5]}: pass special_tokens=({END_OF_TEXT!r},) or "
                "end_of_text=..."
            )
        return self.special_tokens[self._end_of_text]

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token (the name of a special token in UTF-8)."""
        return self.decode_bytes([token])

    @cached_property
    def merges(self) -> list[Merge]:
        """The merges in order. For a vocabulary published as ranks, each token's last merge."""
        if self._merges is not None:
            return self._merges
        merges = []
        for token, i in sorted(self.tokens.items(), key=lambda item: item[1]):
            if len(token) > 1:
                parts = merge_piece(token, lambda pair, i=i: self._rank_below(pair, i))
                if len(parts) == 2:  # otherwise no text ever reaches this token
                    merges.append((parts[0], parts[1]))
        return merges

    def _rank_below(self, pair: Merge, limit: int) -> int | None:
        rank = self.tokens.get(pair[0] + pair[1], limit)
        return rank if rank < limit else None

    @cached_property
    def _rank(self):
        if self._merges is None:
            return lambda pair: self.tokens.get(pair[0] + pair[1])
        return {merge: i for i, merge in reversed(list(enumerate(self._merges)))}.get

    # Text to ids --------------------------------------------------------------------------

    def encode(
        self, text: str, allowed_special: Collection[str] | str = (), fast: bool = True
    ) -> list[int]:
        """Ids of a text.

        allowed_special: names of special tokens to recognise in the text, or "all". Any other
        special token's name is encoded as the plain text it is.
        Raises ValueError for what is no str, a special token that does not exist, a text that is
        not valid Unicode, or a byte the vocabulary lacks (some published ones lack rare bytes).
        """
        if not isinstance(text, str):
            raise ValueError(f"text is {type(text).__name__}: expected str; for many, encode_batch")
        special = self._special_finder(allowed_special)
        if special is None:
            return self._encode_plain(text, fast)
        ids: list[int] = []
        for i, part in enumerate(special.split(text)):
            ids += [self.special_tokens[part]] if i % 2 else self._encode_plain(part, fast)
        return ids

    def encode_batch(
        self, texts: Iterable[str], allowed_special: Collection[str] | str = ()
    ) -> list[list[int]]:
        """`encode` for many texts, on all cores (tiktoken releases Python's lock)."""
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda text: self.encode(text, allowed_special), texts))

    def encode_iterable(
        self, texts: Iterable[str], allowed_special: Collection[str] | str = (), fast: bool = True
    ) -> Iterator[int]:
        """Ids of a text that comes in chunks, cut anywhere: `encode("".join(texts))`, lazily.

        Memory stays constant for the patterns GPT2, GPT4, QWEN and SMOLLM on any text with
        blanks or punctuation. For another pattern nothing is known about where a text may be
        cut, so it is collected first.
        """
        special = self._special_finder(allowed_special)
        # An unfinished special token at the end of the buffer must wait for its rest.
        tail = max(map(len, self.special_tokens), default=1) - 1 if special else 0
        buffer, patience = "", _CHUNK
        for text in texts:
            for start in range(0, len(text), _CHUNK):
                buffer += text[start : start + _CHUNK]
                if len(buffer) < patience:
                    continue
                cut = self._safe_cut(buffer, tail, special)
                yield from self.encode(buffer[:cut], allowed_special, fast)
                buffer = buffer[cut:]
                patience = max(_CHUNK, 2 * len(buffer))  # look again after a fair amount of text
        yield from self.encode(buffer, allowed_special, fast)

    def _safe_cut(self, buffer: str, tail: int, special: regex.Pattern | None) -> int:
        """The last place at which encoding both sides alone changes nothing; 0 if there is none."""
        if self.pattern not in _CUTTABLE:
            return 0
        start, stop = 0, len(buffer) - tail  # every special token before `stop` is complete
        for match in special.finditer(buffer) if special else ():
            if match.start() >= stop:
                break
            start = match.end()
        place = _CUT.search(buffer, start, max(start, stop))
        return place.start() if place else start

    def _special_finder(self, allowed: Collection[str] | str) -> regex.Pattern | None:
        names = self.special_tokens if allowed == "all" else allowed
        if isinstance(names, str):
            raise ValueError(f'allowed_special is {names!r}, expected "all" or a set of names')
        if unknown := [name for name in names if name not in self.special_tokens]:
            raise ValueError(
                f"allowed_special names {unknown}, this tokenizer has "
                f"{list(self.special_tokens)[:20]}"
            )
        if not names:
            return None
        longest_first = sorted(names, key=len, reverse=True)
        return regex.compile(f"({'|'.join(map(regex.escape, longest_first))})")

    def _encode_plain(self, text: str, fast: bool) -> list[int]:
        encoded = text.encode()  # refuses lone surrogates
        if unknown := len(self._known_bytes) < 256 and encoded.translate(None, self._known_bytes):
            raise ValueError(
                f"text holds byte 0x{unknown[0]:02x}, which the vocabulary {self.name!r} lacks: "
                "remove that character"
            )
        if fast and self._tiktoken is not None:
            if len(self.pattern) == 1:
                return self._tiktoken.encode_ordinary(text)
            ids: list[int] = []
            for piece in pretokenize(text, self.pattern[:-1]):
                ids += self._tiktoken.encode_ordinary(piece)
            return ids
        pieces = pretokenize(text, self.pattern)
        return [self.tokens[t] for piece in pieces for t in merge_piece(piece.encode(), self._rank)]

    @cached_property
    def _tiktoken(self) -> tiktoken.Encoding | None:
        """The fast path, or None where tiktoken's rule would not be ours.

        tiktoken merges two neighbours whenever their concatenation is a token. That equals
        merging listed pairs only if ids rise with the order of the merges and every token,
        encoded alone, comes out whole (all tokens that training makes do). Proof: let x, y be
        neighbours whose concatenation t is a token though the pair is not listed. Up to here no
        merge crossed the borders of x, y, so t encoded alone would go the same way, and stop
        at x, y: but it comes out whole.
        """
        if self._merges is not None:
            order = [self.tokens[left + right] for left, right in self._merges]
            every_token_made = len(order) + len(self._known_bytes) == len(self.tokens)
            rising = all(a < b for a, b in pairwise(order))
            if not (every_token_made and rising and all_come_out_whole(self._merges)):
                return None
        return tiktoken.Encoding(
            self.name,
            pat_str=lossless(self.pattern[-1]),
            mergeable_ranks=self.tokens,
            special_tokens={},
        )

    # Ids to text --------------------------------------------------------------------------

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of a sequence of ids. Raises ValueError for an id that is unknown."""
        ids = list(ids)
        try:
            return b"".join([self._bytes[i] for i in ids])
        except KeyError as error:
            raise ValueError(
                f"token id {error.args[0]!r} is not in the vocabulary {self.name!r}: ids are int "
                f"from 0 to {self.vocab_size - 1}"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text. Bytes that are no valid UTF-8, as half a character, become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, vocab_size={self.vocab_size})"
