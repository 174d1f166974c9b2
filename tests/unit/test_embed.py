"""Sentence embeddings on a small random encoder; tests/parity has MiniLM itself."""

import pytest
import torch

from minillm.data.wordpiece import WordPiece
from minillm.infer.embed import embed, pool
from minillm.model.config import ModelConfig
from minillm.model.transformer import Transformer

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "another", "one"]
TEXTS = ["the cat", "a mat and another mat and one cat", "", "one", "on the mat sat the cat"]


@pytest.fixture(scope="module")
def tokenizer():
    return WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])


@pytest.fixture(scope="module")
def model(tokenizer):
    config = ModelConfig(
        tokenizer.vocab_size, d_model=24, n_layers=2, n_heads=4, max_length=16,
        mask="bidirectional", norm_place="post", embedding_norm=True,
    )  # fmt: skip
    return Transformer(config)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_each_text_as_if_it_were_alone(model, tokenizer, pooling):
    alone = []
    for text in TEXTS:
        hidden = model.hidden(torch.tensor([tokenizer.encode(text)]))[0]
        vector = hidden[0] if pooling == "cls" else hidden.mean(dim=0)
        alone.append(vector / vector.norm())
    for batch_size in (1, 2, 32):
        vectors = embed(model, tokenizer, TEXTS, pooling=pooling, batch_size=batch_size)
        assert torch.allclose(vectors, torch.stack(alone), atol=1e-6)


def test_pool_by_hand():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [50.0, 50.0]]])
    real = torch.tensor([[True, True, False]])
    assert pool(hidden, real).tolist() == [[2.0, 4.0]]
    assert pool(hidden, real, "cls").tolist() == [[1.0, 2.0]]
    with pytest.raises(ValueError, match=r"pooling='max'.*'mean', 'cls'"):
        pool(hidden, real, "max")


def test_length_one_unless_asked_otherwise(model, tokenizer):
    vectors = embed(model, tokenizer, TEXTS)
    raw = embed(model, tokenizer, TEXTS, normalize=False)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(len(TEXTS)))
    assert torch.allclose(raw / raw.norm(dim=-1, keepdim=True), vectors)
    assert (raw.norm(dim=-1) - 1).abs().min() > 0.01


def test_long_texts_are_cut(model, tokenizer):
    long = " ".join(["cat"] * 50)
    fits = " ".join(["cat"] * 14)  # 16 positions, two of them for [CLS] and [SEP]
    assert torch.allclose(*embed(model, tokenizer, [long, fits]), atol=1e-6)
    cut, short = embed(model, tokenizer, [long, "cat cat"], max_length=4)
    assert torch.allclose(cut, short, atol=1e-6)


def test_nothing_to_embed(model, tokenizer):
    assert embed(model, tokenizer, []).shape == (0, 24)


def test_refuses(model, tokenizer):
    decoder = Transformer(ModelConfig(tokenizer.vocab_size, d_model=8, n_layers=1, n_heads=2))
    with pytest.raises(ValueError, match=r"mask='causal'.*'bidirectional'"):
        embed(decoder, tokenizer, TEXTS)
    with pytest.raises(ValueError, match="put it into a list"):
        embed(model, tokenizer, "the cat")
    with pytest.raises(ValueError, match="batch_size=0"):
        embed(model, tokenizer, TEXTS, batch_size=0)
    with pytest.raises(ValueError, match="max_length=1"):
        embed(model, tokenizer, TEXTS, max_length=1)
