"""Scores of heads on maps written by hand, and ablation against weights set to zero."""

import pytest
import torch
from helpers import randomised

from minillm.evaluate.heads import (
    best_heads,
    followers_of_the_same,
    heads_off,
    prefix_matching_score,
    previous_token_score,
)
from minillm.model.config import Latent, gpt2_config, llama_config
from minillm.model.maps import attention_maps
from minillm.model.transformer import Transformer

TOKENS = torch.tensor([[7, 2, 9, 7, 2, 2], [1, 2, 3, 4, 5, 1]])


def random_model(config):
    return randomised(Transformer(config), scale=0.3, mean=0.1)


CONFIGS = {
    "biases": gpt2_config(10, d_model=24, n_layers=3, n_heads=4, max_length=16),
    "grouped": llama_config(10, d_model=24, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=10),
    "latent": llama_config(
        10, d_model=24, n_layers=3, n_heads=4, head_dim=6, latent=Latent(8, 4, value_dim=5)
    ),
}


@pytest.fixture(params=CONFIGS)
def model(request):
    return random_model(CONFIGS[request.param])


def random_maps(*shape):
    scores = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) + 0.1
    scores = scores.tril()
    return scores / scores.sum(-1, keepdim=True)


def test_scores_are_the_definitions_written_as_loops():
    maps = random_maps(3, 2, 4, 6, 6)
    for layer in range(3):
        for head in range(4):
            before, matched = [], []
            for b, row in enumerate(TOKENS.tolist()):
                for t in range(len(row)):
                    if t:
                        before.append(maps[layer, b, head, t, t - 1].item())
                    places = [s for s in range(1, t) if row[s - 1] == row[t]]
                    if places:
                        matched.append(sum(maps[layer, b, head, t, s].item() for s in places))
            here = layer, head
            previous = sum(before) / len(before)
            assert previous_token_score(maps)[here].item() == pytest.approx(previous, rel=1e-5)
            prefix = sum(matched) / len(matched)
            assert prefix_matching_score(maps, TOKENS)[here].item() == pytest.approx(
                prefix, rel=1e-5
            )


def test_a_perfect_head_scores_one():
    maps = torch.zeros(1, 1, 2, 5, 5)
    maps[0, 0, 0] = torch.eye(5).roll(-1, 1)  # head 0 looks one back
    tokens = torch.tensor([[3, 4, 5, 3, 4]])
    maps[0, 0, 1, 3, 1] = maps[0, 0, 1, 4, 2] = 1.0  # head 1 at what followed 3, and 4
    assert previous_token_score(maps).tolist() == [[1.0, 0.0]]
    assert prefix_matching_score(maps, tokens).tolist() == [[0.0, 1.0]]


def test_a_doubled_token_does_not_count_as_its_own_follower():
    followers = followers_of_the_same(TOKENS)
    assert followers[0, 5].nonzero().flatten().tolist() == [2]  # not 5 itself, though 4 is a 2
    assert not followers[1, :5].any()


def test_scores_refuse_rows_that_cannot_tell():
    with pytest.raises(ValueError, match="repeated tokens"):
        prefix_matching_score(random_maps(1, 1, 1, 4, 4), torch.tensor([[1, 2, 3, 4]]))
    with pytest.raises(ValueError, match="at least 2"):
        previous_token_score(torch.ones(1, 1, 1, 1, 1))


def test_best_heads_come_best_first():
    scores = torch.tensor([[0.1, 0.3, 0.9], [0.5, 0.2, 0.4]])
    assert best_heads(scores, 3) == [(0, 2), (1, 0), (1, 2)]
    with pytest.raises(ValueError, match="1 to 6 heads"):
        best_heads(scores, 7)


def test_a_head_is_off_as_if_its_columns_of_the_output_were_zero(model):
    off = [(0, 1), (2, 0), (2, 3)]
    tokens = TOKENS.clamp(max=9)
    whole = model(tokens)
    with heads_off(model, off):
        silent = model(tokens)
    assert torch.equal(model(tokens), whole)  # the hooks are gone
    with torch.no_grad():
        for layer, head in off:
            out = model.blocks[layer].attention.out.weight
            out.unflatten(1, (4, -1))[:, head] = 0
    torch.testing.assert_close(silent, model(tokens))
    assert not torch.allclose(silent, whole, atol=0.1)


def test_the_mean_of_a_head_that_says_the_same_everywhere_is_the_head(model):
    tokens = torch.full((2, 1), 4)  # alike rows of one token: nothing varies
    with heads_off(model, [(1, 2)], to="mean"):
        mean = model(tokens)
    torch.testing.assert_close(mean, model(tokens))
    with heads_off(model, [(1, 2)], to="mean"):
        mean = model(TOKENS)
    assert not torch.allclose(mean, model(TOKENS), atol=1e-3)


def test_the_mean_is_over_rows_and_positions(model):
    heard = {}
    out = model.blocks[1].attention.out
    first = out.register_forward_pre_hook(lambda _, inputs: heard.update(before=inputs[0]))
    with heads_off(model, [(1, 3)], to="mean"):
        last = out.register_forward_pre_hook(lambda _, inputs: heard.update(after=inputs[0]))
        model(TOKENS)
        last.remove()
    first.remove()
    before, after = (heard[k].unflatten(-1, (4, -1)) for k in ("before", "after"))
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    expected = before[:, :, 3].flatten(0, 1).mean(0).expand_as(after[:, :, 3])
    torch.testing.assert_close(after[:, :, 3], expected)


def test_heads_come_back_after_an_error_and_gradients_flow(model):
    with pytest.raises(KeyError), heads_off(model, [(0, 0)]):
        raise KeyError
    assert not any(block.attention.out._forward_pre_hooks for block in model.blocks)
    with heads_off(model, [(0, 0)]):
        model(TOKENS).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("head", [(3, 0), (0, 4), (-1, 0)])
def test_a_head_that_is_not_there_is_refused(model, head):
    with pytest.raises(ValueError, match="3 layers of 4 heads"), heads_off(model, [head]):
        pass
    with pytest.raises(ValueError, match="'zero' or 'mean'"), heads_off(model, [], to="noise"):
        pass


def test_latent_attention_has_no_maps():
    with pytest.raises(ValueError, match="latent"):
        attention_maps(random_model(CONFIGS["latent"]), TOKENS)
