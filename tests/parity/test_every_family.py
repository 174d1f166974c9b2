"""Every family against `transformers`: logits, gradients, maps, decoding on a cache, export.

A new family needs a tiny configuration in one of the three modules of cases, nothing else.
"""

from pathlib import Path

import cases_classic
import cases_llama
import cases_sparse
import pytest
import torch
from pairs import (
    check_cached_decoding,
    check_chunked_prefill,
    check_logits_and_gradients,
    check_round_trip,
    load,
    random_tokens,
    randomised,
)

from minillm.model.families import FAMILIES
from minillm.model.maps import attention_maps

DECODERS = cases_classic.DECODERS | cases_llama.CASES | cases_sparse.CASES
CASES = DECODERS | cases_classic.ENCODERS | cases_classic.ENCODER_DECODERS


@pytest.fixture
def pair(name, tmp_path):
    theirs = randomised(CASES[name]())
    return load(theirs, tmp_path / "theirs"), theirs


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_agree_on_a_ragged_batch(pair, tmp_path):
    check_logits_and_gradients(*pair, tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_an_exported_model_is_the_same_in_both_libraries(pair, tmp_path):
    ours, theirs = pair
    check_round_trip(ours, theirs, theirs.config.model_type, tmp_path / "ours")


@pytest.mark.parametrize("name", DECODERS)
def test_decoding_on_a_cache_is_the_full_forward_at_every_position(pair):
    """Ragged rows; equal rows in chunks; one token at a time: all beyond the window."""
    ours, _ = pair
    check_cached_decoding(ours)
    check_chunked_prefill(ours, (5, 1, 7, 4))
    check_chunked_prefill(ours, (1,) * 17)


def test_no_family_is_left_out():
    assert {build().config.model_type for build in CASES.values()} == FAMILIES.keys()


def test_the_family_added_last_is_under_forty_lines_in_all():
    source = Path(FAMILIES["openai-gpt"].__file__).read_text()
    assert len(source.splitlines()) < 40


# Asked for its maps, the reference adds Falcon's ALiBi twice; BLOOM's shows that ours is right.
@pytest.mark.parametrize("name", sorted(DECODERS.keys() - {"falcon_rw"}))
def test_attention_maps_are_those_transformers_returns(pair):
    """With biases, windows, caps, scales and norms of queries and keys, as each family has them."""
    ours, theirs = pair
    tokens = random_tokens(3, 11, seed=6)
    if ours.config.latent:
        with pytest.raises(ValueError, match="latent"):
            attention_maps(ours, tokens)
        return
    expected = torch.stack(theirs(tokens, output_attentions=True).attentions)
    torch.testing.assert_close(attention_maps(ours, tokens), expected, rtol=1e-4, atol=1e-5)
    assert not any(block.attention._forward_pre_hooks for block in ours.blocks)
