"""The tokenizer against `tokenizers` and `tiktoken`, and on published vocabularies."""

import json

import pytest
import tiktoken
import tokenizers
from helpers import PATTERNS
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers, trainers

from minillm.data import assets
from minillm.data.bpe import (
    merge_piece,
    stages,
)
from minillm.data.tokenizer import Tokenizer
from minillm.data.tokenizer_files import to_chars
from minillm.model.gguf import GGUF

unhurried = settings(deadline=None, max_examples=60)  # a busy machine is no failure
SPECIAL = ("<|endoftext|>", "<|end|>")
CORPUS = [
    "It's the third of May, and the singers' choir sings: la, la, la! Nobody's asleep.\n\n",
    "def sing(n):\n    return ['la'] * n  # 12345 times?\n\tpass\r\n",
    "这座城市的人们在星期日唱歌，唱得很大声。城市很小，人们很快乐。café naïve ☕ 👩‍👩‍👧",
    "aaaaaaa aaaa aaa aa abababab bababa",
]
# Only characters assigned in every library's version of Unicode.
characters = st.characters(exclude_categories=("Cs", "Cn"))
pieces = st.sampled_from([" ", "\n", "\r\n", "'s", "'LL", "123", "sing", "城市", "，", "☕", "!?"])
texts = st.lists(pieces | st.text(characters, max_size=4), max_size=30).map("".join)


def outside(pattern):
    """A `tokenizers` tokenizer that splits the same way, without vocabulary."""
    splits = [pre_tokenizers.Split(Regex(stage), "isolated") for stage in stages(pattern)]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    reference = tokenizers.Tokenizer(models.BPE())
    reference.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    return reference


def trained_outside(corpus, vocab_size, pattern):
    reference = outside(pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    reference.train_from_iterator(corpus, trainer)
    return reference


def same_vocabulary(ours, reference):
    vocabulary = {to_chars(token): i for token, i in ours.tokens.items()} | ours.special_tokens
    return vocabulary == reference.get_vocab()


@pytest.fixture(scope="module", params=PATTERNS)
def pair(request):
    pattern = PATTERNS[request.param]
    ours = Tokenizer.train(CORPUS * 2, 480, SPECIAL, pattern)
    return ours, trained_outside(CORPUS * 2, 480, pattern)


def test_training_gives_the_same_merges_and_ids(pair):
    ours, reference = pair
    merges = json.loads(reference.to_str())["model"]["merges"]
    assert [[to_chars(a), to_chars(b)] for a, b in ours.merges] == merges
    assert same_vocabulary(ours, reference)


@unhurried
@given(st.lists(texts, max_size=5), st.integers(258, 330), st.sampled_from(sorted(PATTERNS)))
def test_training_on_any_text(corpus, vocab_size, name):
    """Ties are the rule here: nearly all counts are small."""
    ours = Tokenizer.train(corpus, vocab_size, SPECIAL, PATTERNS[name])
    assert same_vocabulary(ours, trained_outside(corpus, vocab_size, PATTERNS[name]))


@unhurried
@given(texts)
def test_encoding_equals_tokenizers(pair, text):
    ours, reference = pair
    text = text.replace("<|", "")  # that library always recognises special tokens
    assert ours.encode(text) == ours.encode(text, fast=False) == reference.encode(text).ids


def test_special_tokens_equal_tokenizers(pair):
    ours, reference = pair
    text = "<|endoftext|>sing <|end|><|end|> sing<|endoftext|"
    assert ours.encode(text, "all") == reference.encode(text).ids


@unhurried
@given(texts)
def test_a_saved_file_is_read_by_tokenizers(tmp_path_factory, pair, text):
    ours, _ = pair
    path = tmp_path_factory.getbasetemp() / f"{abs(hash(ours.pattern))}.json"
    if not path.exists():
        ours.save(path)
    reference = tokenizers.Tokenizer.from_file(str(path))
    text = text.replace("<|", "")
    assert reference.encode(text).ids == ours.encode(text)
    assert reference.decode(ours.encode(text)) == text


def test_a_file_of_tokenizers_is_read_by_us(tmp_path, pair):
    ours, reference = pair
    reference.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.from_huggingface(tmp_path / "tokenizer.json")
    assert loaded.tokens == ours.tokens and loaded.merges == ours.merges
    assert loaded.special_tokens == ours.special_tokens and loaded.pattern == ours.pattern


@unhurried
@given(data=st.binary(min_size=1, max_size=200))
def test_any_bytes_equal_tiktoken(pair, data):
    """As one piece; `tiktoken` panics at an empty one, which no text ever gives."""
    ours, _ = pair
    reference = ours._tiktoken
    assert isinstance(reference, tiktoken.Encoding)
    parts = merge_piece(data, ours._rank)
    assert [ours.tokens[part] for part in parts] == reference._encode_single_piece(data)


# Published vocabularies -----------------------------------------------------------------------


def sample():
    return (
        "".join(CORPUS)
        + " x²  ½ ３４ ١٢\t\t\n \n  ٣x__init__ HTTPServer2 don't DON'T 中a文1 \u3042\u30ab"
    )


def metadata():
    return GGUF(assets.path("smollm2")).metadata


def test_smollm2_equals_tokenizers_built_by_hand():
    fields = metadata()
    ours = Tokenizer.from_gguf(fields)
    entries = fields["tokenizer.ggml.tokens"]
    merges = [tuple(line.split(" ")) for line in fields["tokenizer.ggml.merges"]]
    reference = tokenizers.Tokenizer(
        models.BPE(vocab={entry: i for i, entry in enumerate(entries)}, merges=merges)
    )
    reference.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    assert ours._tiktoken is not None  # the fast path is proven equal for this vocabulary
    for text in (sample(), *(r["extract"] for r in wikipedia()[:300])):
        assert ours.encode(text) == reference.encode(text).ids
    assert ours.encode(sample(), fast=False) == ours.encode(sample())
    assert ours.end_of_text == 2 and ours.vocab_size == 49152


def test_deepseek_equals_tokenizers():
    path = assets.path("deepseek")
    ours, reference = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    assert ours._tiktoken is not None
    for text in (sample(), *(r["extract"] for r in wikipedia()[:300])):
        assert ours.encode(text) == reference.encode(text, add_special_tokens=False).ids
    assert ours.encode(sample(), fast=False) == ours.encode(sample())


def test_gpt4_round_trip_and_known_ids():
    """Ids as OpenAI publishes them for cl100k_base."""
    ours = Tokenizer.from_tiktoken(assets.path("gpt4"), special_tokens={"<|endoftext|>": 100257})
    assert ours.encode("hello world") == [15339, 1917]
    assert ours.encode("tiktoken is great!") == [83, 1609, 5963, 374, 2294, 0]
    assert ours.decode(ours.encode(sample())) == sample()
    assert ours.encode("<|endoftext|>", "all") == [100257]


def test_mistral_round_trip():
    ours = Tokenizer.from_tekken(assets.path("mistral"))
    assert ours.vocab_size == 131072
    assert ours.decode(ours.encode(sample())) == sample()
    assert ours.encode("hello", fast=False) == ours.encode("hello")


def wikipedia():
    return list(json.loads(assets.read("wikipedia")).values())
