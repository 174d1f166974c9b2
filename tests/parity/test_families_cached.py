"""Every decoder family: decoding on a cache gives the logits of the full forward everywhere."""

import pytest
from pairs import check_cached_decoding, check_chunked_prefill, load, randomised
from test_families_classic import DECODERS


@pytest.fixture(params=DECODERS)
def ours(request, tmp_path):
    return load(randomised(DECODERS[request.param]()), tmp_path)


def test_ragged_rows_read_at_once_then_token_by_token_and_in_a_chunk(ours):
    check_cached_decoding(ours)


@pytest.mark.parametrize("chunks", [(5, 1, 7, 4), (1,) * 17])
def test_rows_of_equal_length_read_chunk_by_chunk(ours, chunks):
    check_chunked_prefill(ours, chunks)
