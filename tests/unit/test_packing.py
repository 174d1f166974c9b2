"""Packing: nothing lost, nothing invented, and resuming is the same as never stopping."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.data.packing import IGNORE, Batches

END = 0
documents_of = st.lists(st.lists(st.integers(1, 99), max_size=12), min_size=1, max_size=12)
sizes = st.integers(1, 7)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_line_written_out_by_hand():
    """0 1 2 3 0 4 | 0 5 6 and a closing 0: two blocks of four, the last one one short."""
    packed = Batches(
        [[1, 2, 3], [4], [5, 6]],
        block_size=5,
        batch_size=2,
        end_token=END,
        mask_documents=True,
        drop_last=False,
    )
    (batch,) = packed
    assert batch.tokens.tolist() == [[0, 1, 2, 3, 0], [4, 0, 5, 6, 0]]
    assert batch.targets.tolist() == [[1, 2, 3, 0, 4], [0, 5, 6, 0, IGNORE]]
    assert batch.documents.tolist() == [[0, 0, 0, 0, 1], [1, 2, 2, 2, -1]]
    assert batch.tokens.dtype == batch.targets.dtype == batch.documents.dtype == torch.int64


@given(documents_of, sizes, sizes, st.none() | st.integers(0, 99))
@settings(deadline=None)
def test_every_token_is_an_input_once_and_a_target_once(documents, block, batch, seed):
    packed = Batches(
        documents,
        block_size=block,
        batch_size=batch,
        end_token=END,
        generator=None if seed is None else generator(seed),
        mask_documents=True,
        drop_last=False,
    )
    seen = list(packed)
    assert len(seen) == len(packed)
    owners = torch.cat([x.documents.flatten() for x in seen]).tolist()
    inputs = torch.cat([x.tokens.flatten() for x in seen]).tolist()
    targets = torch.cat([x.targets.flatten() for x in seen]).tolist()

    # Each document, read through its mask, is exactly itself behind one end token …
    for index, document in enumerate(documents):
        mine = [place for place, owner in enumerate(owners) if owner == index]
        assert [inputs[place] for place in mine] == [END, *document]
        # … and is predicted exactly: itself, then its end.
        assert [targets[place] for place in mine] == [*document, END]
        assert mine == list(range(mine[0], mine[0] + len(mine)))
    # Whatever belongs to nobody is filling, and no loss counts it.
    filling = [place for place, owner in enumerate(owners) if owner == -1]
    assert all(inputs[place] == END and targets[place] == IGNORE for place in filling)
    assert len(filling) < block


@given(documents_of, sizes, sizes)
@settings(deadline=None)
def test_dropping_the_tail_gives_full_batches_and_a_prefix(documents, block, batch):
    everything = {"block_size": block, "batch_size": batch, "end_token": END}
    kept = list(Batches(documents, drop_last=False, **everything))
    total = sum(len(document) + 1 for document in documents)
    if total < block * batch:
        with pytest.raises(ValueError, match="fewer than one batch"):
            Batches(documents, **everything)
        return
    full = list(Batches(documents, **everything))
    assert len(full) == total // (block * batch)
    for ours, theirs in zip(full, kept, strict=False):
        assert ours.tokens.shape == ours.targets.shape == (batch, block)
        assert torch.equal(ours.tokens, theirs.tokens)
        assert torch.equal(ours.targets, theirs.targets)
        assert ours.documents is None


@given(documents_of, sizes, st.integers(0, 40), st.none() | st.integers(0, 99))
@settings(deadline=None)
def test_resuming_equals_never_stopping(documents, block, stop, seed):
    """Stop after any batch, in any epoch; a fresh object continues bit for bit."""

    def fresh(seed):
        return Batches(
            documents,
            block_size=block,
            batch_size=2,
            end_token=END,
            generator=None if seed is None else generator(seed),
            mask_documents=True,
            drop_last=False,
        )

    first = fresh(seed)
    endless = first.forever()
    for _ in range(stop):
        next(endless)
    state = first.state_dict()

    second = fresh(None if seed is None else seed + 1)  # its own shuffle must not matter
    second.load_state_dict(state)
    resumed = second.forever()
    for _ in range(2 * len(first) + 3):
        ours, theirs = next(resumed), next(endless)
        assert torch.equal(ours.tokens, theirs.tokens)
        assert torch.equal(ours.targets, theirs.targets)
        assert torch.equal(ours.documents, theirs.documents)
    if seed is not None:
        assert torch.equal(first.generator.get_state(), second.generator.get_state())


def test_each_epoch_has_its_own_order_and_no_generator_keeps_it():
    documents = [[n] for n in range(1, 33)]
    shuffled = Batches(
        documents, block_size=64, batch_size=1, end_token=END, generator=generator(0)
    )
    first, second = (next(iter(shuffled)).tokens for _ in range(2))
    assert sorted(first.flatten().tolist()) == sorted(second.flatten().tolist())
    assert not torch.equal(first, second)
    plain = Batches(documents, block_size=64, batch_size=1, end_token=END)
    assert next(iter(plain)).tokens[0, 1::2].tolist() == list(range(1, 33))
    assert torch.equal(next(iter(plain)).tokens, next(iter(plain)).tokens)


def test_a_batch_moves_to_a_device_with_everything_it_holds():
    packed = Batches([[1, 2, 3]], block_size=2, batch_size=1, end_token=END, mask_documents=True)
    moved = next(iter(packed)).to("meta")
    assert {moved.tokens.device.type, moved.targets.device.type, moved.documents.device.type} == {
        "meta"
    }


def test_what_is_refused_and_in_which_words():
    packed = Batches([[1, 2, 3]], block_size=2, batch_size=1, end_token=END)
    with pytest.raises(ValueError, match="block_size is 0, expected at least 1"):
        Batches([[1]], block_size=0, batch_size=1, end_token=END)
    with pytest.raises(ValueError, match="documents are texts: expected token ids"):
        Batches(["a b"], block_size=1, batch_size=1, end_token=END)
    with pytest.raises(ValueError, match="0 documents hold 0 tokens"):
        Batches([], block_size=1, batch_size=1, end_token=END, drop_last=False)
    other = Batches([[1, 2, 3, 4]], block_size=2, batch_size=1, end_token=END)
    with pytest.raises(ValueError, match="n_tokens 5, these batches have 4"):
        packed.load_state_dict(other.state_dict())
    shuffled = Batches(
        [[1, 2, 3]], block_size=2, batch_size=1, end_token=END, generator=generator(0)
    )
    with pytest.raises(ValueError, match="pass a generator exactly if there was one"):
        packed.load_state_dict(shuffled.state_dict())
