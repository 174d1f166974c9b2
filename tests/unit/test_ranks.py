"""Ranks as threads: messages arrive in order, sums agree, and nobody waits for ever."""

import pytest
import torch

from minillm.course.ranks import Link, Stuck, simulate


def test_messages_keep_their_order_and_are_copies():
    def talk(x, link: Link):
        if link.rank == 0:
            link.send(x, 1)
            x += 1
            link.send(x, 1)
            return []
        first, second = link.receive(0), link.receive(0)
        return [first.item(), second.item()]

    results, links = simulate(talk, 2, [torch.tensor(5.0), None])
    assert results == [[], [5.0, 6.0]]
    assert links[0].sent == [(1, 1), (1, 1)]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_all_ranks_get_the_sum(n):
    xs = [torch.arange(3.0) + rank for rank in range(n)]
    results, links = simulate(lambda x, link: link.all_reduce(link.all_reduce(x)), n, xs)
    for result in results:
        torch.testing.assert_close(result, n * torch.stack(xs).sum(0))
    assert [link.n_reductions for link in links] == [2] * n


def test_ranks_that_wait_for_each_other_are_told_so():
    with pytest.raises(Stuck, match="rank 0 waits for rank 1"):
        simulate(lambda link: link.receive(1 - link.rank), 2)


def test_a_rank_that_leaves_early_does_not_keep_the_others():
    with pytest.raises(Stuck, match="rank 1 waits for rank 0"):
        simulate(lambda link: link.rank and link.receive(0), 2)


def test_the_error_of_a_rank_is_the_one_to_hear_about():
    def fail(link: Link):
        if link.rank == 1:
            raise KeyError("mine")
        link.receive(1)

    with pytest.raises(KeyError, match="mine"):
        simulate(fail, 3)
