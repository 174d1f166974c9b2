"""Verifiers: where a judgement stands, what is learned from it, and how it is read."""

import pytest
import torch
import torch.nn.functional as F
from helpers import randomised

from minillm.evaluate.verifiers import Judged, judged_batch, log_odds, verdicts, verifier_loss
from minillm.infer.rollout import response_batch
from minillm.model.config import gpt2_config
from minillm.model.transformer import Transformer
from minillm.train.loop import train

PROMPTS = [[3, 1, 4], [1], [2, 6]]
RESPONSES = [[5, 9], [8, 7, 2, 4], [6, 6, 0]]
LABELS = [[1, 0], [1, 1, 0, None], [None, 0, 1]]


@pytest.fixture
def verifier():
    model = Transformer(gpt2_config(11, d_model=16, n_layers=2, n_heads=2, max_length=12))
    return randomised(model)


def by_hand(verifier):
    """The log-odds of each response token, from one forward a prefix."""
    rows = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        prefixes = [prompt + response[:i] for i in range(len(response))]
        logits = [verifier(torch.tensor([prefix]))[0, -1] for prefix in prefixes]
        rows.append([row[token] for row, token in zip(logits, response, strict=True)])
    return rows


def test_a_label_stands_where_its_token_is_the_target():
    batch = judged_batch([[5, 6], [4]], [[7, 1], [3, 2, 2]], [[1, 0], [1, None, 0.5]])
    assert (
        batch.targets.tolist()
        == response_batch([[5, 6], [4]], [[7, 1], [3, 2, 2]]).targets.tolist()
    )
    assert batch.judged.tolist() == [[False, True, True, False], [True, False, True, False]]
    assert batch.labels.tolist() == [[0, 1, 0, 0], [1, 0, 0.5, 0]]
    moved = batch.to("meta")
    assert isinstance(moved, Judged)
    assert {moved.labels.device.type, moved.judged.device.type, moved.tokens.device.type} == {
        "meta"
    }


def test_labels_must_fit():
    with pytest.raises(ValueError, match="row 1: 1 labels for 2 tokens"):
        judged_batch([[5], [6]], [[7], [1, 2]], [[1], [1]])


def test_the_loss_is_the_cross_entropy_of_the_judged_tokens(verifier):
    loss, n = verifier_loss(verifier, judged_batch(PROMPTS, RESPONSES, LABELS))
    flat = [
        (odds, label)
        for row, labels in zip(by_hand(verifier), LABELS, strict=True)
        for odds, label in zip(row, labels, strict=True)
        if label is not None
    ]
    assert n == len(flat) == 7
    expected = sum(-F.logsigmoid(odds if label else -odds) for odds, label in flat)
    torch.testing.assert_close(loss, expected)
    parameters = list(verifier.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_log_odds_are_zero_where_nothing_was_chosen(verifier):
    batch = response_batch(PROMPTS, RESPONSES)
    odds = log_odds(verifier, batch)
    assert (odds[batch.targets == -100] == 0).all()


def test_verdicts_join_the_tokens(verifier):
    chances = [torch.stack(row).sigmoid() for row in by_hand(verifier)]
    for reduce, join in {
        "product": lambda c: c.prod(),
        "min": lambda c: c.min(),
        "last": lambda c: c[-1],
    }.items():
        found = verdicts(verifier, PROMPTS, RESPONSES, reduce)
        torch.testing.assert_close(found, torch.stack([join(c) for c in chances]))
    with pytest.raises(ValueError, match="reduce='mean'"):
        verdicts(verifier, PROMPTS, RESPONSES, "mean")


def test_a_product_never_rises_along_a_path(verifier):
    """What best-first search relies on."""
    prefixes = [[8], [8, 7], [8, 7, 2], [8, 7, 2, 4]]
    values = verdicts(verifier, [[1]] * 4, prefixes).tolist()
    assert values == sorted(values, reverse=True)


def test_training_tells_right_tokens_from_wrong_ones(verifier):
    batch = judged_batch(PROMPTS, RESPONSES, LABELS)
    train(
        verifier, [batch] * 60, steps=60, lr=1e-2, weight_decay=0.0, loss_fn=verifier_loss,
        progress=False,
    )  # fmt: skip
    chances = log_odds(verifier, batch).sigmoid()[batch.judged]
    assert ((chances > 0.5) == (batch.labels[batch.judged] > 0.5)).all()
