"""Vocabulary files: Hugging Face `tokenizer.json`, tiktoken, Mistral's tekken, GGUF metadata.

Each reader returns the keyword arguments of `Tokenizer`. A file that is not well formed, or
that asks for something byte-level BPE does not do, is refused with a ValueError that says what
was found: a tokenizer that silently does something else spoils every model behind it.
"""

import base64
import binascii
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex

from minillm.data.bpe import (
    BYTE_TO_CHAR,
    CHAR_TO_BYTE,
    GPT2_PATTERN,
    GPT4_PATTERN,
    SMOLLM_PATTERN,
    Merge,
    Pattern,
    stages,
)

if TYPE_CHECKING:
    from minillm.data.tokenizer import Tokenizer

_TABLE = str.maketrans({chr(byte): char for byte, char in BYTE_TO_CHAR.items()})
# Tokenizers named in GGUF files whose pre-tokenisation we know.
_GGUF_PATTERNS = {"smollm": SMOLLM_PATTERN, "gpt-2": GPT2_PATTERN}
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # types of tokens in GGUF; special tokens are control


def to_chars(token: bytes) -> str:
    """GPT-2's way to write bytes as visible characters: b" a" -> "Ġa"."""
    return token.decode("latin-1").translate(_TABLE)


def from_chars(chars: str) -> bytes:
    """The inverse of `to_chars`. Raises ValueError for a character that stands for no byte."""
    try:
        return bytes([CHAR_TO_BYTE[char] for char in chars])
    except KeyError as error:
        raise ValueError(
            f"token {chars!r} holds {error.args[0]!r}, which stands for no byte: the vocabulary "
            "is not byte-level"
        ) from None


# Hugging Face tokenizer.json ------------------------------------------------------------------


def write_huggingface(tokenizer: "Tokenizer", path: str | os.PathLike) -> None:
    """Write a `tokenizer.json`. The file is complete or not there at all."""
    tokens = sorted(tokenizer.tokens.items(), key=lambda item: item[1])
    splits = [
        {"type": "Split", "pattern": {"Regex": stage}, "behavior": "Isolated", "invert": False}
        for stage in tokenizer.pattern
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": special, **plain, "special": True}
            for special, i in sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*splits, {**byte_level, "use_regex": False}],
        },
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {
                **tokenizer.special_tokens,
                **{to_chars(token): i for token, i in tokens},
            },
            "merges": [[to_chars(a), to_chars(b)] for a, b in tokenizer.merges],
        },
    }
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)


def read_huggingface(
    path: str | os.PathLike, end_of_text: str | None = None, name: str | None = None
) -> dict[str, Any]:
    """Read a byte-level BPE `tokenizer.json`. All added tokens count as special.

    Raises:
        ValueError: another kind of tokenizer, or a damaged file; says what was found.
    """
    document = _json(path)
    model = _entry(document, "model", dict, path)
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        kind = "byte_fallback" if model.get("byte_fallback") else model["type"]
        raise ValueError(f"{path}: model is {kind!r}, expected byte-level BPE")
    for option in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(option):
            raise ValueError(
                f"{path}: model has {option}={model[option]!r}, which is not supported"
            )
    normalizer = document.get("normalizer") or {}
    if normalizer.get("normalizers", normalizer):  # an empty Sequence does nothing
        raise ValueError(f"{path}: normalizer {normalizer.get('type')!r} would change the text")
    special_tokens: dict[str, int] = {}
    for added in document.get("added_tokens") or []:
        content, i = _entry(added, "content", str, path), _entry(added, "id", int, path)
        if content in special_tokens:
            raise ValueError(f"{path}: special token {content!r} is listed twice")
        if any(added.get(option) for option in ("lstrip", "rstrip", "single_word")):
            raise ValueError(f"{path}: special token {content!r} would swallow its surroundings")
        special_tokens[content] = i
    vocabulary = _entry(model, "vocab", dict, path)
    tokens = {t: from_chars(t) for t in vocabulary if t not in special_tokens}
    return {
        "tokens": {token: vocabulary[t] for t, token in tokens.items()},
        "merges": _merges(_entry(model, "merges", list, path), tokens, path),
        "special_tokens": special_tokens,
        "pattern": _pattern(document.get("pre_tokenizer"), path),
        "end_of_text": end_of_text or _likely_end(special_tokens),
        "name": name or Path(path).stem,
    }


def _pattern(node: Mapping[str, Any] | None, path: object) -> tuple[str, ...]:
    """The regexes of a pre-tokenizer, in the order they are applied."""
    todo = list(node.get("pretokenizers", [node])) if node else []
    found: list[str] = []
    byte_level = False
    for step in todo:
        match step:
            case {"type": "Split", "pattern": {"Regex": stage}, "behavior": "Isolated"}:
                found.append(stage)
            case {"type": "Split", "pattern": {"String": text}, "behavior": "Isolated"}:
                found.append(regex.escape(text))
            case {"type": "Digits", "individual_digits": alone}:
                found.append(r"\p{N}" if alone else r"\p{N}+")
            case {"type": "ByteLevel", "add_prefix_space": False}:
                byte_level = True
                if step.get("use_regex", True):
                    found.append(GPT2_PATTERN)
            case _:
                raise ValueError(f"{path}: pre-tokenizer {step} is not supported")
    if not byte_level:
        raise ValueError(
            f"{path}: the pre-tokenizer has no ByteLevel step, so it is no byte-level BPE"
        )
    return tuple(found) or (r"[\s\S]+",)


def _likely_end(special_tokens: Mapping[str, int]) -> str | None:
    """`tokenizer.json` does not say which token ends a text: know the usual names."""
    usual = ("<|endoftext|>", "<｜end▁of▁sentence｜>", "<|end_of_text|>", "</s>")
    return next((name for name in usual if name in special_tokens), None)


# tiktoken, tekken, GGUF -----------------------------------------------------------------------


def read_tiktoken(
    path: str | os.PathLike,
    pattern: Pattern = GPT4_PATTERN,
    special_tokens: Mapping[str, int] | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Read lines of `base64(token) rank`. Pattern and special tokens are not in the file.

    Raises:
        ValueError: names the line that is not of this form.
    """
    tokens: dict[bytes, int] = {}
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            encoded, rank = line.split()
            token, rank = base64.b64decode(encoded, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"{path} line {number}: {line[:60]!r} is not `base64 rank`") from None
        if token in tokens:
            raise ValueError(f"{path} line {number}: token {token!r} is listed twice")
        tokens[token] = rank
    return {
        "tokens": _non_empty(tokens, path),
        "special_tokens": special_tokens,
        "pattern": pattern,
        "name": name or Path(path).stem,
    }


def read_tekken(path: str | os.PathLike, name: str | None = None) -> dict[str, Any]:
    """Read Mistral's tekken: special tokens first, then ranks. Unnamed ones become <SPECIAL_i>.

    Raises:
        ValueError: the file holds fewer or more tokens than it promises.
    """
    document = _json(path)
    config = _entry(document, "config", dict, path)
    n_special = _entry(config, "default_num_special_tokens", int, path)
    n_tokens = _entry(config, "default_vocab_size", int, path) - n_special
    names = {0: "<unk>", 1: "<s>", 2: "</s>"}
    names |= {s["rank"]: s["token_str"] for s in document.get("special_tokens") or []}
    tokens: dict[bytes, int] = {}
    for entry in _entry(document, "vocab", list, path)[:n_tokens]:
        token = base64.b64decode(_entry(entry, "token_bytes", str, path))
        tokens[token] = _entry(entry, "rank", int, path) + n_special
    if len(tokens) != n_tokens:
        raise ValueError(f"{path}: {len(tokens)} distinct tokens, config promises {n_tokens}")
    return {
        "tokens": tokens,
        "special_tokens": {names.get(i, f"<SPECIAL_{i}>"): i for i in range(n_special)},
        "pattern": _entry(config, "pattern", str, path),
        "end_of_text": "</s>",
        "name": name or Path(path).stem,
    }


def read_gguf_metadata(metadata: Mapping[str, Any], name: str | None = None) -> dict[str, Any]:
    """Read the `tokenizer.ggml.*` entries of a GGUF file.

    The end-of-text token is the file's own: for a chat model the one that ends a turn.

    Raises:
        ValueError: another kind of tokenizer, or entries that contradict each other.
    """
    source, field = "GGUF metadata", "tokenizer.ggml."
    kind = _entry(metadata, field + "model", str, source)
    if kind != "gpt2":
        raise ValueError(f"{source}: tokenizer model is {kind!r}, expected 'gpt2' (byte-level BPE)")
    pre = metadata.get(field + "pre", "gpt-2")
    if pre not in _GGUF_PATTERNS:
        raise ValueError(
            f"{source}: pre-tokenizer {pre!r} is unknown, expected {list(_GGUF_PATTERNS)}"
        )
    entries = list(_entry(metadata, field + "tokens", object, source))
    types = list(metadata.get(field + "token_type", [1] * len(entries)))
    if len(types) != len(entries):
        raise ValueError(f"{source}: {len(entries)} tokens but {len(types)} token types")
    if len(set(entries)) < len(entries):
        raise ValueError(f"{source}: a token is listed twice")
    numbered = list(enumerate(zip(entries, types, strict=True)))
    special_tokens = {entry: i for i, (entry, kind) in numbered if kind == _CONTROL}
    tokens = {entry: from_chars(entry) for entry in entries if entry not in special_tokens}
    end = metadata.get(field + "eos_token_id")
    if end is not None and not (0 <= end < len(entries) and entries[end] in special_tokens):
        raise ValueError(f"{source}: eos_token_id {end} is no special token")
    return {
        "tokens": {tokens[entry]: i for i, (entry, kind) in numbered if kind != _CONTROL},
        "merges": _merges(_entry(metadata, field + "merges", object, source), tokens, source),
        "special_tokens": special_tokens,
        "pattern": _GGUF_PATTERNS[pre],
        "end_of_text": None if end is None else entries[end],
        "name": name or metadata.get("general.name", "gguf"),
    }


def gguf_metadata(tokenizer: "Tokenizer", n_tokens: int) -> dict[str, object]:
    """The `tokenizer.ggml.*` entries of a GGUF file; the inverse of `read_gguf_metadata`.

    Args:
        n_tokens: rows of the model's embedding; ids without a token are listed as unused.

    Raises:
        ValueError: text is cut in a way that has no name in GGUF files.
    """
    names = [
        name for name, pattern in _GGUF_PATTERNS.items() if stages(pattern) == tokenizer.pattern
    ]
    if not names:
        raise ValueError(
            f"tokenizer {tokenizer.name!r} cuts text in a way that has no name in GGUF files; "
            f"known are {list(_GGUF_PATTERNS)}"
        )
    entries = {i: (f"[unused{i}]", _UNUSED) for i in range(n_tokens)}
    entries |= {i: (to_chars(token), _NORMAL) for token, i in tokenizer.tokens.items()}
    entries |= {i: (special, _CONTROL) for special, i in tokenizer.special_tokens.items()}
    field = "tokenizer.ggml."
    about = {
        field + "model": "gpt2",
        field + "pre": names[0],
        field + "tokens": [entries[i][0] for i in sorted(entries)],
        field + "token_type": [entries[i][1] for i in sorted(entries)],
        field + "merges": [f"{to_chars(a)} {to_chars(b)}" for a, b in tokenizer.merges],
        field + "add_bos_token": False,
    }
    with suppress(ValueError):  # a tokenizer may have no such token
        about[field + "eos_token_id"] = tokenizer.end_of_text
    return about


# Shared ---------------------------------------------------------------------------------------


def _json(path: str | os.PathLike) -> dict[str, Any]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON or bad UTF-8
        raise ValueError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds a {type(document).__name__}, expected a JSON object")
    return document


def _entry(document: Mapping[str, Any], key: str, kind: type, source: object) -> Any:
    value = document.get(key)
    if value is None or not isinstance(value, kind):
        expected = "a value" if kind is object else kind.__name__
        raise ValueError(f"{source}: {key!r} is {type(value).__name__}, expected {expected}")
    return value


def _merges(
    lines: Iterable[str | list[str]], tokens: Mapping[str, bytes], source: object
) -> list[Merge]:
    merges = []
    for line in lines:
        parts = line.split(" ") if isinstance(line, str) else line
        if len(parts) != 2 or parts[0] not in tokens or parts[1] not in tokens:
            raise ValueError(f"{source}: merge {line!r} is not a pair of tokens of the vocabulary")
        merges.append((tokens[parts[0]], tokens[parts[1]]))
    return merges


def _non_empty(tokens: dict[bytes, int], path: object) -> dict[bytes, int]:
    if not tokens:
        raise ValueError(f"{path} holds no tokens")
    return tokens
