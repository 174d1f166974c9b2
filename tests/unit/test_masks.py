"""Who may look at whom: masks on hand-written cases, and in whole models."""

from dataclasses import replace

import pytest
import torch
from helpers import randomised

from minillm.model.attention import attention, grouped_attention
from minillm.model.cache import KVCache
from minillm.model.config import Rope, gpt2_config, llama_config
from minillm.model.masks import causal_mask, document_mask, prefix_mask, visible, window_mask
from minillm.model.transformer import Transformer

CONFIG = llama_config(31, d_model=24, n_layers=2, n_heads=3, max_length=40)
POSITIONS = {
    "learned": replace(CONFIG, position="learned"),
    "rope": CONFIG,
    "partial interleaved rope": replace(CONFIG, rope=Rope(fraction=0.5, pairs="interleaved")),
    "rope on some layers": replace(CONFIG, rope=Rope(skip_layers=(1,))),
    "alibi": replace(CONFIG, position="alibi"),
    "relative": replace(CONFIG, position="relative"),
    "none": replace(CONFIG, position="none"),
    "window": replace(CONFIG, window=4),
    "window with a global layer": replace(CONFIG, window=4, global_layers=(1,)),
    "softcap": replace(CONFIG, attention_softcap=2.0, window=4),
    "QK-norm per head": replace(CONFIG, qk_norm="head"),
    "QK-norm over all": replace(CONFIG, qk_norm="all", n_heads=4, n_kv_heads=2),
}


def random_model(config) -> Transformer:
    return randomised(Transformer(config), seed=0, mean=0.1)


def some_tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(31, shape, generator=torch.Generator().manual_seed(seed))


def test_masks_by_hand():
    positions = torch.tensor([1, 2])
    assert causal_mask(positions, 4).int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert window_mask(positions, 4, 2).int().tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    rows = torch.tensor([[0, 1], [2, 3]])
    assert causal_mask(rows, 4)[:, 0].int().tolist() == [
        [[1, 0, 0, 0], [1, 1, 0, 0]],
        [[1, 1, 1, 0], [1, 1, 1, 1]],
    ]
    both = prefix_mask(torch.arange(3), 3, torch.tensor([0, 2]))[:, 0].int().tolist()
    assert both == [[[1, 0, 0], [1, 1, 0], [1, 1, 1]], [[1, 1, 0], [1, 1, 0], [1, 1, 1]]]
    documents = torch.tensor([[0, 0, 1]])
    assert document_mask(documents)[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    encoder = visible(torch.arange(3), 3, causal=False, documents=documents)[0, 0]
    assert encoder.int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("name", POSITIONS)
@torch.no_grad()
def test_the_future_changes_nothing(name):
    model = random_model(POSITIONS[name])
    tokens, changed = some_tokens(2, 12), some_tokens(2, 12)
    changed[:, 7:] = some_tokens(2, 5, seed=9)
    difference = (model(tokens) - model(changed)).abs().amax((0, 2))
    assert difference[:7].max() < 1e-5 < difference[7]


@pytest.mark.parametrize("name", POSITIONS)
@torch.no_grad()
def test_cached_is_uncached_beyond_the_window_and_with_ragged_rows(name):
    """A prompt longer than the window, then single tokens, then a chunk, in rows of 5, 9, 7."""
    model, tokens = random_model(POSITIONS[name]), some_tokens(3, 20)
    whole = model(tokens)
    cache, lengths = KVCache(model.config, 3, 30), [5, 9, 7]
    prompt = model(tokens[:, :9], cache=cache)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(prompt[row, :n], whole[row, :n], atol=1e-4, rtol=1e-3)
    cache.advance(lengths)
    for width in (1, 1, 4, 1):
        new = torch.stack([tokens[row, n : n + width] for row, n in enumerate(lengths)])
        logits = model(new, cache=cache)
        cache.advance(width)
        for row, n in enumerate(lengths):
            expected = whole[row, n : n + width]
            torch.testing.assert_close(logits[row], expected, atol=1e-4, rtol=1e-3)
        lengths = [n + width for n in lengths]


@pytest.mark.parametrize("name", ["rope", "alibi", "relative", "window"])
@torch.no_grad()
def test_positions_without_a_table_know_only_distances(name):
    """The same document behind another one: relative positions do not notice."""
    model = random_model(POSITIONS[name])
    text, before = some_tokens(1, 8), some_tokens(1, 6, seed=3)
    packed = torch.cat((before, text), dim=1)
    documents = torch.tensor([[0] * 6 + [1] * 8])
    torch.testing.assert_close(
        model(packed, documents=documents)[:, 6:], model(text), atol=1e-4, rtol=1e-3
    )


@torch.no_grad()
def test_a_window_reaches_window_minus_one_a_layer_and_global_layers_everything():
    tokens, changed = some_tokens(1, 16), some_tokens(1, 16)
    changed[0, 0] = (changed[0, 0] + 1) % 31

    def reached(name):
        model = random_model(POSITIONS[name])
        moved = (model(tokens) - model(changed)).abs().amax((0, 2)) > 1e-6
        return moved.nonzero().max().item()

    assert reached("window") == 2 * 3
    assert reached("window with a global layer") == 15


@torch.no_grad()
def test_a_prefix_is_seen_from_both_sides_and_the_rest_is_causal():
    model = random_model(replace(CONFIG, mask="prefix"))
    tokens, prefix = some_tokens(2, 10), torch.tensor([4, 6])
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 31
    moved = (model(tokens, prefix=prefix) - model(changed, prefix=prefix)).abs().amax(-1) > 1e-6
    assert moved[0].tolist() == [False] * 5 + [True] * 5  # position 5 is behind row 0's prefix
    assert moved[1].tolist() == [True] * 10  # and inside row 1's


@torch.no_grad()
def test_an_encoder_sees_both_sides_but_no_padding():
    config = gpt2_config(31, d_model=24, n_layers=2, n_heads=3, mask="bidirectional")
    model, tokens = random_model(config), some_tokens(1, 9)
    real = (torch.arange(9) < 6).long()[None]
    expected = model(tokens[:, :6])
    torch.testing.assert_close(model(tokens, documents=real)[:, :6], expected)
    late = tokens.clone()
    late[0, 5] = (late[0, 5] + 1) % 31
    assert (model(late, documents=real) - model(tokens, documents=real))[0, 0].abs().max() > 1e-4


def test_softcap_bounds_the_scores():
    """Scores of ±1000 under a cap of 3 become ±3: shares e^3 to e^-3."""
    q = torch.tensor([[[[1000.0]]]])
    k = torch.tensor([[[[1.0], [-1.0]]]])
    v = torch.tensor([[[[1.0], [0.0]]]])
    mixed = grouped_attention(q, k, v, None, scale=1.0, softcap=3.0)
    share = torch.tensor([3.0, -3.0]).softmax(0)[0]
    torch.testing.assert_close(mixed.flatten(), share[None])


def test_a_float_mask_is_added_to_the_scores_with_gradients():
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 5, 6, generator=g)
    bias = torch.randn(2, 4, 5, 5, generator=g, requires_grad=True)
    expected = (q @ k.mT / 6**0.5 + bias).softmax(-1) @ v
    for actual in (
        grouped_attention(q, k, v, bias),
        grouped_attention(q, k, v, bias, softcap=1e6),
    ):
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(y.square().sum(), bias, retain_graph=True)
              for y in (actual, expected))
        )  # fmt: skip
    seen = causal_mask(torch.arange(5), 5)
    torch.testing.assert_close(grouped_attention(q, k, v, seen), attention(q, k, v, seen))


@torch.no_grad()
def test_layers_that_skip_the_rotation_have_no_positions():
    tokens = some_tokens(1, 9)
    without, skipped, some = (
        random_model(config)(tokens)
        for config in (
            POSITIONS["none"],
            replace(CONFIG, rope=Rope(skip_layers=(0, 1))),
            POSITIONS["rope on some layers"],
        )
    )
    torch.testing.assert_close(skipped, without)
    assert not torch.allclose(some, without, atol=1e-2)
    assert not torch.allclose(some, random_model(CONFIG)(tokens), atol=1e-2)
