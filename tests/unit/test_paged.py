"""The paged cache: the numbers of the contiguous one, shared prefixes, and every block counted."""

import random

import pytest
import torch
from helpers import randomised

from minillm.adapt.quant_cache import Int8Cache, Int8Pool
from minillm.infer.engine import generate
from minillm.infer.paged import (
    BlockPool,
    BlockTable,
    OutOfBlocks,
    PagedCache,
    block_hash,
    paged_cache,
)
from minillm.model.cache import KVCache
from minillm.model.config import Latent, gpt2_config, llama_config
from minillm.model.transformer import Transformer

SIZE = {"d_model": 24, "n_layers": 2, "n_heads": 4, "max_length": 40}
CONFIGS = {
    "gpt2": gpt2_config(19, **SIZE),
    "grouped": llama_config(19, **SIZE, n_kv_heads=2),
    "alibi": llama_config(19, **SIZE, position="alibi"),
    "window": llama_config(19, **SIZE, window=4),
    "latent": llama_config(19, **SIZE, latent=Latent(kv_rank=8, rope_dim=4)),
}
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9]]


@pytest.fixture(params=CONFIGS)
def model(request):
    return randomised(Transformer(CONFIGS[request.param]))


def some_tokens(*shape, seed=0):
    return torch.randint(19, shape, generator=torch.Generator().manual_seed(seed))


def paged_rows(config, n_rows, block_size, n_blocks=60, pool_type=BlockPool):
    pool = pool_type(config, n_blocks, block_size)
    return PagedCache(pool, [BlockTable() for _ in range(n_rows)])


def reading(model, cache, tokens, counts):
    """Logits of the tokens that count, (sum of counts, V), and count them."""
    with torch.no_grad():
        logits = model(tokens, cache=cache)
    cache.advance(counts)
    counts = [counts] * len(tokens) if isinstance(counts, int) else counts
    return torch.cat([row[:n] for row, n in zip(logits, counts, strict=True)])


def is_consistent(pool, tables):
    """Every block is counted as often as it is listed, and free if it is not."""
    listed = [block for table in tables for block in table.blocks]
    counts = [listed.count(block) for block in range(pool.n_blocks)]
    return pool.references == counts and pool.n_free == counts.count(0)


@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_ragged_rows_get_the_logits_of_the_contiguous_cache(model, block_size):
    """A ragged prompt, single tokens, a chunk, steps back, rows that leave or go on as two."""
    plain = KVCache(model.config, 3, 40)
    paged = paged_rows(model.config, 3, block_size)
    script = [
        (some_tokens(3, 7), [5, 1, 7]),
        (some_tokens(3, 1, seed=1), 1),
        (some_tokens(3, 4, seed=2), [4, 2, 0]),
        (2, "rewind"),
        (torch.tensor([2, 0, 0]), "keep"),
        (some_tokens(3, 1, seed=3), 1),
        (some_tokens(3, 5, seed=4), [5, 4, 1]),
        (torch.tensor([False, True, True]), "keep"),
        (some_tokens(2, 1, seed=5), 1),
    ]
    for tokens, counts in script:
        if isinstance(counts, str):
            for cache in (plain, paged):
                getattr(cache, counts)(tokens)
        else:
            expected, got = (reading(model, c, tokens, counts) for c in (plain, paged))
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        assert paged.lengths.tolist() == plain.lengths.tolist()
        assert is_consistent(paged.pool, paged.tables)


def test_generate_takes_it_like_any_cache(model):
    seeds = {"max_new_tokens": 20, "stop_tokens": (7,)}
    expected, got = (
        generate(model, PROMPTS, generator=torch.Generator().manual_seed(0), **seeds, **more)
        for more in ({}, {"cache_type": paged_cache})
    )
    assert got == expected


def test_no_block_holds_only_padding():
    cache = paged_rows(CONFIGS["gpt2"], 2, 4)
    reading(randomised(Transformer(CONFIGS["gpt2"])), cache, some_tokens(2, 9), [9, 2])
    assert [len(table.blocks) for table in cache.tables] == [3, 1]
    assert cache.pool.n_free == 60 - 4


def test_rows_that_split_share_what_is_full_and_copy_what_they_write():
    model = randomised(Transformer(CONFIGS["grouped"]))
    cache = paged_rows(model.config, 1, 4)
    reading(model, cache, some_tokens(1, 10), 10)  # two full blocks and half of one
    cache.keep(torch.tensor([0, 0, 0]))
    assert cache.pool.n_free == 60 - 3
    blocks = [table.blocks for table in cache.tables]
    before = cache.pool.keys[:, blocks[0][2], :2].clone()
    reading(model, cache, some_tokens(3, 1), 1)
    assert len({row[2] for row in blocks}) == 3  # one of them kept the original
    assert all(row[:2] == blocks[0][:2] for row in blocks)
    assert all(torch.equal(cache.pool.keys[:, row[2], :2], before) for row in blocks)
    assert is_consistent(cache.pool, cache.tables)


def published(model, pool, tokens):
    """A row that has read `tokens` and made its full blocks findable."""
    table = BlockTable()
    reading(model, PagedCache(pool, [table]), torch.tensor([tokens]), len(tokens))
    pool.publish(table, tokens)
    return table


def test_a_row_goes_on_from_blocks_that_another_has_computed(model):
    tokens = some_tokens(14).tolist()
    pool = BlockPool(model.config, 20, block_size=4)
    first = published(model, pool, tokens)
    second = pool.find([*tokens[:9], 0])
    assert second.blocks == first.blocks[:2] and second.length == 8
    ours = [*tokens[:8], 11, 12, 13, 14]
    got = reading(model, PagedCache(pool, [second]), torch.tensor([ours[8:]]), 4)
    with torch.no_grad():
        expected = model(torch.tensor([ours]))[0, 8:]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert is_consistent(pool, [first, second])


def test_the_same_tokens_after_another_beginning_are_another_block():
    model = randomised(Transformer(CONFIGS["gpt2"]))
    pool = BlockPool(model.config, 20, block_size=2)
    published(model, pool, [1, 2, 3, 4, 5])
    assert pool.find([1, 2, 3, 4]).length == 4
    assert pool.find([3, 4]).length == pool.find([5, 2, 3, 4]).length == 0
    assert pool.find([1, 2, 3]).length == 2  # only whole blocks
    assert block_hash(b"", [1, 2]) != block_hash(b"", [12])
    assert block_hash(block_hash(b"", [1]), [2]) != block_hash(block_hash(b"", [2]), [2])


def is_findable(pool, tokens):
    """Whether a row could begin with these; looking counts as a use."""
    found = pool.find(tokens)
    length = found.length
    pool.resize(found, 0)
    return length == len(tokens)


def test_blocks_stay_findable_until_their_memory_is_needed_the_longest_unused_first():
    model = randomised(Transformer(CONFIGS["gpt2"]))
    pool, table = BlockPool(model.config, 4, block_size=2), BlockTable()
    for tokens in ([1, 2], [4, 5]):
        pool.resize(published(model, pool, tokens), 0)
    for _ in range(2):
        pool.resize(table, 0)
        pool.reserve(table, 4)  # two blocks that nobody can find, given back and taken again
    assert is_findable(pool, [4, 5]) and is_findable(pool, [1, 2])
    pool.reserve(table, 6)
    assert not is_findable(pool, [4, 5]) and is_findable(pool, [1, 2])
    pool.reserve(table, 8)
    assert not is_findable(pool, [1, 2])


def test_going_back_into_a_findable_block_does_not_change_it_for_others():
    model = randomised(Transformer(CONFIGS["gpt2"]))
    pool = BlockPool(model.config, 9, block_size=4)
    tokens = some_tokens(8).tolist()
    first = published(model, pool, tokens)
    second = pool.find(tokens)
    kept = pool.keys[:, second.blocks].clone()
    pool.resize(first, 6)  # and goes on otherwise
    reading(model, PagedCache(pool, [first]), torch.tensor([[18, 17]]), 2)
    assert torch.equal(pool.keys[:, second.blocks], kept)
    pool.publish(first, [*tokens[:6], 18, 17])
    assert is_findable(pool, [*tokens[:6], 18, 17])
    pool.resize(first, 7)  # alone this time: written in place, and no longer found
    reading(model, PagedCache(pool, [first]), torch.tensor([[16]]), 1)
    assert pool.find([*tokens[:6], 18, 17]).length == 4
    assert pool.find(tokens).length == 8


def test_a_thousand_random_moves_lose_no_block():
    config = CONFIGS["gpt2"]
    pool, tables, moves = BlockPool(config, 12, block_size=3), [BlockTable()], random.Random(0)
    refused = 0
    for _ in range(1000):
        table = moves.choice(tables)
        move = moves.randrange(4)
        if move == 0 and len(tables) < 8:
            tables.append(pool.fork(table))
        elif move == 1:
            pool.resize(table, moves.randint(0, table.length))
        elif move == 2 and len(tables) > 4:
            pool.resize(table, 0)
            tables = [t for t in tables if t is not table]
        else:
            n_new = moves.randint(1, 7)
            try:
                pool.reserve(table, n_new)
                pool.resize(table, table.length + moves.randint(0, n_new))
                pool.publish(table, [moves.randrange(2)] * table.length)
            except OutOfBlocks:
                refused += 1
        assert is_consistent(pool, tables)
        found = pool.find([moves.randrange(2)] * 9)
        tables.append(found)
        assert is_consistent(pool, tables)
        pool.resize(tables.pop(), 0)
    assert 10 < refused < 500


def test_int8_blocks_hold_what_the_int8_cache_holds(model):
    plain = Int8Cache(model.config, 3, 40)
    paged = paged_rows(model.config, 3, 4, pool_type=Int8Pool)
    for tokens, counts in ((some_tokens(3, 7), [5, 1, 7]), (some_tokens(3, 2, seed=1), 2)):
        expected, got = (reading(model, c, tokens, counts) for c in (plain, paged))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    paged.keep(torch.tensor([0, 0])), plain.keep(torch.tensor([0, 0]))
    tokens = some_tokens(2, 1, seed=2)  # copies the half-full block, scales included
    expected, got = (reading(model, c, tokens, 1) for c in (plain, paged))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    head = 0 if model.config.latent else model.config.head_dim
    if head:
        n_codes = 60 * 4 * model.config.n_layers * model.config.n_kv_heads
        assert paged.nbytes == n_codes * 2 * (head + 4)


def test_a_full_pool_and_impossible_sizes_are_refused():
    config = CONFIGS["gpt2"]
    pool = BlockPool(config, 2, block_size=4)
    with pytest.raises(OutOfBlocks, match="all 2 blocks of 4 tokens are in use"):
        pool.reserve(BlockTable(), 9)
    for n_blocks, block_size in ((0, 4), (2, 0)):
        with pytest.raises(ValueError, match="both must be at least 1"):
            BlockPool(config, n_blocks, block_size)
    cache = PagedCache(BlockPool(config, 2, block_size=4), [BlockTable()])
    with pytest.raises(ValueError, match="holds 8 tokens a row and 9 are needed"):
        randomised(Transformer(config))(some_tokens(1, 9), cache=cache)
