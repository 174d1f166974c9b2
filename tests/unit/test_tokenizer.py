"""The tokenizer alone: round trips, streams, special tokens, files, and what it refuses."""

import base64
import json
import pickle
import tracemalloc
from itertools import pairwise

import pytest
from helpers import PATTERNS
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.data import bpe
from minillm.data.bpe import GPT2_PATTERN, GPT4_PATTERN, SMOLLM_PATTERN
from minillm.data.tokenizer import Tokenizer
from minillm.data.tokenizer_files import from_chars, to_chars

unhurried = settings(deadline=None)  # a busy machine is no failure

TEXT = """It's a small town, isn't it? 12345 people live there; 987 of them sing.
\tThe singers' choir -- 40 voices --  sings on Sundays.\n\n   "Louder!" they say. Louder!
这座城市的人们在星期日唱歌，唱得很大声。城市很小，人们很快乐。 naïve café ☕
👩‍👩‍👧 <|endoftext|> end"""
SPECIAL = ("<|endoftext|>", "<|end|>")
TRAINED = {
    name: Tokenizer.train([TEXT] * 3, 420, SPECIAL, pattern=pattern, name=name)
    for name, pattern in PATTERNS.items()
}
# Text that hits the corners of the patterns far more often than uniform text does.
pieces = st.sampled_from(
    [" ", "  ", "\n", "\r\n", "\t", "'s", "'", "12", "1", "city", "人们", "，", "é", "👩", "!", "…"]
    + ["<|end|>", "<|end", "|>", "<|endoftext|>", "\x00", "\u00a0"]
)
texts = st.lists(pieces | st.text(max_size=3), max_size=25).map("".join)


@pytest.fixture(params=PATTERNS)
def tokenizer(request):
    return TRAINED[request.param]


def test_merges_of_the_textbook_example():
    """aaabdaaabac (Gage 1994): aa is most frequent, then the tie goes to the pair made first."""
    merges = bpe.train_bpe(["aaabdaaabac"], 259, pattern=r"[\s\S]+")
    # aa: 4 neighbours. Then [aa]a, ab, [aa]... : "a","b" twice and "aa","a" twice; a < aa.
    assert merges == [(b"a", b"a"), (b"a", b"b"), (b"aa", b"ab")]


def test_incremental_counts_equal_recounting_everything():
    def naive(text, n_merges):
        words = [[bytes([b]) for b in p.encode()] for p in bpe.pretokenize(text)]
        number = {bytes([b]): i for i, b in enumerate(bpe.BYTE_ORDER)}
        merges = []
        for _ in range(n_merges):
            counts = {}
            for word in words:
                for pair in pairwise(word):
                    counts[pair] = counts.get(pair, 0) + 1
            best = min(counts, key=lambda p: (-counts[p], number[p[0]], number[p[1]]))
            merges.append(best)
            number[best[0] + best[1]] = len(number)
            for word in words:
                for i in range(len(word) - 1):
                    if i < len(word) - 1 and (word[i], word[i + 1]) == best:
                        word[i : i + 2] = [best[0] + best[1]]
        return merges

    assert bpe.train_bpe([TEXT + "aaaaa aaaa aaa"], 256 + 60) == naive(TEXT + "aaaaa aaaa aaa", 60)


@unhurried
@given(
    st.lists(st.tuples(*[st.text("abc", min_size=1, max_size=3)] * 2), max_size=12), st.text("abc")
)
def test_merge_piece_equals_merging_the_best_pair_one_at_a_time(pairs, text):
    rank = {(a.encode(), b.encode()): i for i, (a, b) in enumerate(pairs)}
    parts = [bytes([b]) for b in text.encode()]
    while candidates := [(rank[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in rank]:
        _, i = min(candidates)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    assert bpe.merge_piece(text.encode(), rank.get) == parts


@unhurried
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=9))
def test_whole_tokens_are_recognised_as_by_encoding_each(choices):
    """Random merge lists, in which each merge joins tokens that exist by then."""
    tokens, merges = [b"a", b"b"], []
    for left, right in choices:
        pair = tokens[left % len(tokens)], tokens[right % len(tokens)]
        if pair[0] + pair[1] not in tokens:
            merges.append(pair)
            tokens.append(pair[0] + pair[1])
    rank = {merge: i for i, merge in enumerate(merges)}.get
    whole = all(len(bpe.merge_piece(token, rank)) == 1 for token in tokens)
    assert bpe.all_come_out_whole(merges) == whole


def test_trained_tokens_come_out_whole(tokenizer):
    assert bpe.all_come_out_whole(tokenizer.merges)


@unhurried
@given(texts)
def test_text_survives(text):
    for tokenizer in TRAINED.values():
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode(text, fast=False) == ids


@unhurried
@given(st.binary())
def test_any_bytes_survive(data):
    tokenizer = TRAINED["gpt4"]
    ids = [tokenizer.tokens[part] for part in bpe.merge_piece(data, tokenizer._rank)]
    assert tokenizer.decode_bytes(ids) == data


def check_stream(tokenizer, chunks, allowed=()):
    ids = list(tokenizer.encode_iterable(iter(chunks), allowed))
    assert ids == tokenizer.encode("".join(chunks), allowed)


@unhurried
@given(texts, st.data(), st.sampled_from([(), "all", SPECIAL[:1]]))
def test_a_stream_gives_the_ids_of_the_whole(text, data, allowed):
    """Cut anywhere, and looked at after so few characters that every kind of border occurs."""
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=9)))
    chunks = [text[i:j] for i, j in pairwise([0, *borders, len(text)])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minillm.data.tokenizer._CHUNK", data.draw(st.integers(1, 12)))
        for tokenizer in TRAINED.values():
            check_stream(tokenizer, chunks, allowed)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize(
    "text", ["sing  \n\n city", "people's 's city's", "a\n\nb", "12345 67", "唱歌，唱", "a!!\nb"]
)
def test_a_stream_of_single_characters(name, text, monkeypatch):
    monkeypatch.setattr("minillm.data.tokenizer._CHUNK", 1)
    check_stream(TRAINED[name], text * 3)


def test_a_stream_waits_for_the_longer_special_token(monkeypatch):
    monkeypatch.setattr("minillm.data.tokenizer._CHUNK", 1)
    check_stream(Tokenizer.train(["x"], 259, ("<a>", "<a> <b>")), "x<a> <b>x<a> x", "all")


def test_digits_stand_alone_in_the_fast_path_too():
    vocabulary = {bytes([b]): b for b in range(256)} | {b"12": 256}
    tokenizer = Tokenizer(vocabulary, pattern=SMOLLM_PATTERN)
    assert tokenizer.encode("12") == tokenizer.encode("12", fast=False) == [0x31, 0x32]


@pytest.mark.parametrize(
    ("tokens", "merges"),
    [
        (b"a b c ab bc", [(b"a", b"b")]),  # bc is a token, but no merge makes it
        (b"a b c bc ab", [(b"a", b"b"), (b"b", b"c")]),  # ids do not rise with the merges
        (b"a b c ab bc abc", [(b"a", b"b"), (b"b", b"c"), (b"a", b"bc")]),  # abc is never reached
    ],
)
def test_the_fast_path_steps_aside_where_tiktoken_would_differ(tokens, merges):
    tokenizer = Tokenizer({token: i for i, token in enumerate(tokens.split())}, merges=merges)
    for text in ("bc", "abc", "aabcbcab"):
        assert tokenizer.encode(text) == tokenizer.encode(text, fast=False)
    assert tokenizer._tiktoken is None


@pytest.mark.parametrize("name", ["gpt2", "gpt4", "qwen", "smollm"])
def test_a_stream_needs_constant_memory(name):
    line = TEXT.replace("\n", " ") + "\n"
    tokenizer = TRAINED[name]
    tokenizer.encode(line)  # build the fast path first

    def peak(n):
        tracemalloc.start()
        for _ in tokenizer.encode_iterable(line for _ in range(n)):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(4000) < peak(400) + 100_000  # 1 MB of text more


def test_special_tokens_never_come_from_text(tokenizer):
    special = set(tokenizer.special_tokens.values())
    assert not special & set(tokenizer.encode("a<|endoftext|>b<|end|>"))
    only_one = tokenizer.encode("a<|endoftext|>b<|end|>", allowed_special={"<|end|>"})
    assert [i for i in only_one if i in special] == [tokenizer.special_tokens["<|end|>"]]
    assert tokenizer.decode(only_one) == "a<|endoftext|>b<|end|>"
    ids = tokenizer.encode("a<|endoftext|>b<|end|>", allowed_special="all")
    assert [i for i in ids if i in special] == [0, 1]


def test_the_longest_special_token_wins():
    tokenizer = Tokenizer.train(["x"], 259, ("<a>", "<a><b>"))
    assert tokenizer.encode("<a><b>x<a>", "all")[0] == 1
    assert list(tokenizer.encode_iterable("<a><b>x<a>", "all")) == tokenizer.encode(
        "<a><b>x<a>", "all"
    )


def test_batches_equal_single_texts(tokenizer):
    assert tokenizer.encode_batch([TEXT, "", "a b"]) == [
        tokenizer.encode(text) for text in (TEXT, "", "a b")
    ]


def test_ids_and_sizes():
    tokenizer = TRAINED["gpt4"]
    assert tokenizer.vocab_size == len(tokenizer) == 420
    assert tokenizer.special_tokens == {"<|endoftext|>": 0, "<|end|>": 1}
    assert tokenizer.end_of_text == 0
    assert tokenizer.token_bytes(2) == b"!"
    assert tokenizer.decode(tokenizer.encode("é")[:1])
    assert tokenizer.decode([tokenizer.tokens["é".encode()[:1]]]) == "\ufffd"


def test_it_can_be_pickled(tokenizer):
    tokenizer.encode("x")
    assert pickle.loads(pickle.dumps(tokenizer)).encode(TEXT) == tokenizer.encode(TEXT)


def test_chars_for_bytes():
    assert to_chars(b" a\n") == "ĠaĊ"
    assert from_chars(to_chars(bytes(range(256)))) == bytes(range(256))


# Files ----------------------------------------------------------------------------------------


def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    assert loaded.encode(TEXT, "all") == tokenizer.encode(TEXT, "all")
    assert loaded.tokens == tokenizer.tokens and loaded.merges == tokenizer.merges
    assert loaded.special_tokens == tokenizer.special_tokens
    assert loaded.pattern == tokenizer.pattern and loaded.end_of_text == tokenizer.end_of_text


def test_ranks_and_merges_are_two_views_of_one_vocabulary(tmp_path):
    tokenizer = TRAINED["gpt4"]
    lines = (base64.b64encode(t) + b" %d\n" % i for t, i in tokenizer.tokens.items())
    (tmp_path / "x.tiktoken").write_bytes(b"".join(lines))
    ranks = Tokenizer.from_tiktoken(
        tmp_path / "x.tiktoken", special_tokens=tokenizer.special_tokens
    )
    assert ranks.merges == tokenizer.merges
    assert ranks.encode(TEXT, fast=False) == tokenizer.encode(TEXT)


def gguf_metadata(**changes):
    tokenizer = TRAINED["smollm"]
    entries = {i: to_chars(token) for token, i in tokenizer.tokens.items()}
    entries |= {i: special for special, i in tokenizer.special_tokens.items()}
    metadata = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": [entries[i] for i in range(len(entries))],
        "token_type": [3, 3] + [1] * (len(entries) - 2),
        "merges": [f"{to_chars(a)} {to_chars(b)}" for a, b in tokenizer.merges],
        "eos_token_id": 1,
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}


def test_gguf_metadata():
    tokenizer = Tokenizer.from_gguf(gguf_metadata())
    assert tokenizer.encode(TEXT) == TRAINED["smollm"].encode(TEXT)
    assert tokenizer.end_of_text == 1  # the file's own, here <|end|>
    assert tokenizer.token_bytes(1) == b"<|end|>"


def test_tekken(tmp_path):
    ordered = sorted(TRAINED["gpt4"].tokens, key=TRAINED["gpt4"].tokens.get)
    vocab = [
        {"rank": i, "token_bytes": base64.b64encode(token).decode()}
        for i, token in enumerate([*ordered, b"never reached"])
    ]
    config = {"pattern": GPT4_PATTERN, "default_num_special_tokens": 5}
    config["default_vocab_size"] = len(ordered) + 5
    (tmp_path / "t.json").write_text(json.dumps({"config": config, "vocab": vocab}))
    tokenizer = Tokenizer.from_tekken(tmp_path / "t.json")
    assert tokenizer.encode(TEXT) == [i + 3 for i in TRAINED["gpt4"].encode(TEXT)]
    assert tokenizer.end_of_text == 2 and tokenizer.vocab_size == len(ordered) + 5


# What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: t.decode([5, 420]), "token id 420 is not in the vocabulary"),
        (lambda t: t.decode([-1]), "token id -1"),
        (lambda t: t.token_bytes("a"), "token id 'a'"),
        (lambda t: t.encode("x", {"<|no|>"}), "names .*<|no|>"),
        (lambda t: t.encode("x", "<|end|>"), 'expected "all" or a set'),
        (lambda t: t.encode("\ud800"), "surrogates not allowed"),
        (lambda t: t.encode(["a"]), "text is list: expected str; for many, encode_batch"),
        (lambda t: Tokenizer.train("one text", 300), "texts is one str"),
        (lambda t: Tokenizer.train(["x"], 256), "must be at least 257"),
        (lambda t: Tokenizer.train(["x"], 300, ("<a>", "<a>")), "one token twice"),
        (lambda t: Tokenizer.train(["x"], 300, ("",)), "must not be empty"),
        (lambda t: Tokenizer.train(["x"], 300, pattern="(a"), "not a valid regex"),
        (lambda t: Tokenizer.train(["x"], 300, pattern="a*"), "at least one character"),
        (lambda t: Tokenizer.train(["x"], 300, pattern="(a)"), "no capturing groups"),
        (lambda t: bpe.train_bpe(["x"], 255), "vocab_size 255 must be at least 256"),
        (lambda t: Tokenizer.train(["x"], 256, ()).end_of_text, "no end-of-text token"),
        (lambda t: Tokenizer({b"a": 0, b"b": 0}), "two tokens share one id"),
        (lambda t: Tokenizer({b"": 0}), "non-empty"),
        (lambda t: Tokenizer({b"a": 0}, special_tokens={"<a>": 0}), "has id 0 of b'a'"),
        (lambda t: Tokenizer({b"a": 0}, special_tokens={"x": 1, "y": 1}), "share one id"),
        (lambda t: Tokenizer({b"a": 0}, merges=[(b"a", b"b")]), "not in the vocabulary"),
        (lambda t: Tokenizer({b"a": 0}, end_of_text="</s>"), "not among the special tokens"),
        (lambda t: Tokenizer({b"a": 0}).encode("ab"), "byte 0x62, which the vocabulary"),
        (lambda t: Tokenizer.from_gguf({}), "tokenizer.ggml.model"),
        (lambda t: Tokenizer.from_gguf(gguf_metadata(model="llama")), "expected 'gpt2'"),
        (lambda t: Tokenizer.from_gguf(gguf_metadata(pre="odd")), "pre-tokenizer 'odd'"),
        (lambda t: Tokenizer.from_gguf(gguf_metadata(token_type=[1])), "1 token types"),
        (lambda t: Tokenizer.from_gguf(gguf_metadata(eos_token_id=7)), "eos_token_id 7"),
        (lambda t: Tokenizer.from_gguf(gguf_metadata(merges=["a b c"])), "is not a pair"),
        (lambda t: Tokenizer.from_gguf(gguf_metadata(tokens=["a", "a"], token_type=None)), "twice"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call(TRAINED["gpt4"])


def document(**changes):
    base = {
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    }
    for path, value in changes.items():
        place, *keys = base, *path.split("__")
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
    return base


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_the_smallest_huggingface_file(tmp_path):
    tokenizer = Tokenizer.load(write(tmp_path / "t.json", document()))
    assert tokenizer.encode("abba") == [2, 1, 0] and tokenizer.pattern == (GPT2_PATTERN,)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not a JSON file"),
        ("[]", "expected a JSON object"),
        ({}, "'model' is NoneType, expected dict"),
        (document(model__type="Unigram"), "expected byte-level BPE"),
        (document(model__byte_fallback=True), "byte_fallback"),
        (document(model__dropout=0.1), "dropout=0.1"),
        (document(normalizer={"type": "NFC"}), "normalizer 'NFC' would change the text"),
        (document(pre_tokenizer=None), "no ByteLevel step"),
        (document(pre_tokenizer={"type": "Whitespace"}), "Whitespace.* is not supported"),
        (document(added_tokens=[{"id": 3, "content": "<s>"}] * 2), "listed twice"),
        (document(added_tokens=[{"id": 3, "content": "<s>", "lstrip": True}]), "surroundings"),
        (document(added_tokens=[{"content": "<s>"}]), "'id' is NoneType"),
        (document(model__vocab={"京": 0}), "stands for no byte"),
        (document(model__merges=["a c"]), "merge 'a c' is not a pair of tokens"),
        (document(model__merges=[["b", "a"]]), "needs a token that is not in the vocabulary"),
    ],
)
def test_refused_huggingface_files(tmp_path, content, words):
    with pytest.raises(ValueError, match=words):
        Tokenizer.load(write(tmp_path / "t.json", content))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("YQ== 0\nYg==\n", r"line 2: b'Yg==' is not `base64 rank`"),
        ("YQ== 0\n%% 1\n", "line 2"),
        ("YQ== 0\nYQ== 1\n", "line 2: token b'a' is listed twice"),
        ("YQ== 0\nYg== 0\n", "two tokens share one id"),
        ("", "holds no tokens"),
    ],
)
def test_refused_tiktoken_files(tmp_path, content, words):
    with pytest.raises(ValueError, match=words):
        Tokenizer.from_tiktoken(write(tmp_path / "t.tiktoken", content))


def test_a_tekken_file_that_is_too_short_is_refused(tmp_path):
    config = {"pattern": "a", "default_num_special_tokens": 1, "default_vocab_size": 9}
    with pytest.raises(ValueError, match="0 distinct tokens, config promises 8"):
        Tokenizer.from_tekken(write(tmp_path / "t.json", {"config": config, "vocab": []}))
