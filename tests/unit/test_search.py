"""Searches over steps and forced budgets, on a model whose every choice is known beforehand."""

import pytest
import torch
from helpers import randomised, rng

from minillm.evaluate.search import (
    Found,
    Path,
    Steps,
    beam_search_steps,
    best_first_search,
    force_budget,
)
from minillm.infer.sampling import Sampler
from minillm.model.config import gpt2_config
from minillm.model.transformer import Transformer

END, MARK, WAIT = 0, 8, 9
PROMPTS = [[5], [6, 7]]


@pytest.fixture
def policy():
    """Random weights: every token has a fair chance."""
    model = Transformer(gpt2_config(10, d_model=16, n_layers=1, n_heads=2, max_length=24))
    return randomised(model, scale=0.1)


class Scripted(Transformer):
    """Says what a table tells it: token → next token."""

    def __init__(self, table):
        super().__init__(gpt2_config(10, d_model=16, n_layers=1, n_heads=2, max_length=40))
        self.table = torch.zeros(10, dtype=torch.int64)
        for token, following in table.items():
            self.table[token] = following

    def hidden(self, tokens, cache=None, documents=None):
        super().hidden(tokens, cache=cache)  # the cache keeps its places
        return torch.nn.functional.one_hot(self.table[tokens], 16).float()

    def logits(self, hidden):
        return 50 * hidden[..., :10]


def loves_threes(prompts, responses):
    """A value that falls with every token but 3 and the end, and never rises."""
    return torch.tensor([0.5 ** sum(t not in (3, END) for t in r) for r in responses])


def steps(policy, **changes):
    return Steps(policy, **{"stop_tokens": (END,), "max_steps": 4, **changes})


def test_beam_search_follows_the_value(policy):
    found = beam_search_steps(
        steps(policy), PROMPTS, loves_threes, beams=2, expand=40, generator=rng()
    )
    for path in found.best():
        assert set(path.tokens) <= {3, END}
        assert path.score == 1
    assert all(len(paths) == 2 for paths in found.paths)


def test_beam_search_counts_what_it_samples(policy):
    """No end token: every round samples beams · expand tokens for each of the prompts."""
    endless = steps(policy, stop_tokens=(), max_steps=3)
    found = beam_search_steps(endless, PROMPTS, loves_threes, beams=2, expand=40, generator=rng())
    assert found.n_tokens == 3 * 2 * 80
    assert all(len(path.tokens) == 3 and not path.finished for path in found.best())


def test_a_beam_keeps_the_best_and_no_path_twice(policy):
    found = beam_search_steps(
        steps(policy, max_steps=2), PROMPTS, loves_threes, beams=5, expand=20, generator=rng()
    )
    for paths in found.paths:
        scores = [path.score for path in paths]
        assert scores == sorted(scores, reverse=True)
        assert len({path.tokens for path in paths}) == len(paths) == 5


def test_finished_paths_stay_and_are_not_continued(policy):
    def loves_the_end(prompts, responses):
        return torch.tensor([1.0 if END in r else 0.1 for r in responses])

    found = beam_search_steps(
        steps(policy), PROMPTS, loves_the_end, beams=1, expand=60, generator=rng()
    )
    assert [path.tokens for path in found.best()] == [(END,), (END,)]
    assert found.n_tokens == 2 * 60  # one round


def test_a_finished_path_keeps_its_place_while_others_go_on(policy):
    def loves_the_end_first(prompts, responses):
        return torch.tensor([1.0 if r == (END,) else 0.5 ** len(r) for r in responses])

    found = beam_search_steps(
        steps(policy), PROMPTS, loves_the_end_first, beams=2, expand=60, generator=rng()
    )
    for paths in found.paths:
        assert paths[0].tokens == (END,)
        assert len(paths[1].tokens) > 1


def test_a_step_may_be_shorter_than_allowed(policy):
    two = steps(policy, max_step_tokens=2, step_ends=(3,), max_steps=1)
    found = beam_search_steps(two, PROMPTS, loves_threes, beams=9, expand=20, generator=rng())
    for paths in found.paths:
        assert (3,) in [path.tokens for path in paths]
        assert all(3 not in path.tokens[:-1] for path in paths)


def test_steps_end_where_they_should(policy):
    def longest(prompts, responses):
        for response in responses:  # whole steps only: two tokens, or up to a 3
            assert len(response) % 2 == 0 or 3 in response or END in response
        return torch.tensor([float(len(r)) for r in responses])

    two = steps(policy, max_step_tokens=2, step_ends=(3,), max_steps=3)
    found = beam_search_steps(two, PROMPTS, longest, beams=3, expand=10, generator=rng())
    assert max(len(path.tokens) for paths in found.paths for path in paths) == 6


def test_best_first_search_stops_with_the_best_finished_path(policy):
    found = best_first_search(
        steps(policy, max_steps=6), PROMPTS, loves_threes, expand=40, max_rounds=30, generator=rng()
    )
    for paths in found.paths:
        assert paths[0].finished
        assert paths[0].score == max(path.score for path in paths) == 1
    assert found.n_tokens < 30 * 40 * 2


def test_best_first_search_goes_back():
    """Down the road of 1 the value falls below that of 2, which waits since the first round."""
    policy = Transformer(gpt2_config(10, d_model=16, n_layers=1, n_heads=2, max_length=24))
    visited = []

    def value(prompts, responses):
        table = {(1,): 0.9, (2,): 0.8}
        for response in responses:
            visited.append(tuple(response))
        return torch.tensor(
            [table.get(tuple(r), 0.7 if r[0] == 2 else 0.1) if r[0] in (1, 2) else 0.0
             for r in responses]
        )  # fmt: skip

    best_first_search(
        steps(policy, stop_tokens=()), [[5]], value, expand=60, max_rounds=3, generator=rng()
    )
    grown = [path for path in visited if len(path) == 2]
    first = [path[0] for path in grown]
    assert first.index(1) < first.index(2)
    assert set(first) == {1, 2}


def test_searches_refuse(policy):
    with pytest.raises(ValueError, match="beams=0"):
        beam_search_steps(steps(policy), PROMPTS, loves_threes, beams=0, expand=2)
    with pytest.raises(ValueError, match="max_rounds=0"):
        best_first_search(steps(policy), PROMPTS, loves_threes, expand=2, max_rounds=0)
    with pytest.raises(ValueError, match="max_steps=0"):
        steps(policy, max_steps=0)


def test_the_best_path_is_a_finished_one():
    unfinished, finished = Path((1,), 0.9), Path((1, END), 0.2, finished=True)
    assert Found([[unfinished, finished]]).best() == [finished]


# 1 → 2 → 3 → MARK → 4 → END: three thoughts after the prompt 1, then an answer.
TALK = {1: 2, 2: 3, 3: MARK, MARK: 4, 4: END, WAIT: 2}


def think(at_most, prompts=([1],), **more):
    return force_budget(
        Scripted(TALK), list(prompts), at_most=at_most, end_of_thinking=MARK, stop_tokens=(END,),
        max_answer_tokens=3, sampler=Sampler(temperature=0), **more,
    )  # fmt: skip


def test_a_budget_cuts_thoughts_off():
    assert think(0) == [[MARK, 4]]
    assert think(1) == [[2, MARK, 4]]
    assert think(2) == [[2, 3, MARK, 4]]
    assert think(9) == [[2, 3, MARK, 4]]  # it stops by itself


def test_waiting_makes_it_think_on():
    assert think(9, wait=[WAIT], n_waits=1) == [[2, 3, WAIT, 2, 3, MARK, 4]]
    assert think(9, wait=[WAIT], n_waits=2) == [[2, 3, WAIT, 2, 3, WAIT, 2, 3, MARK, 4]]
    assert think(4, wait=[WAIT], n_waits=2) == [[2, 3, WAIT, 2, MARK, 4]]  # the budget rules
    assert think(2, wait=[WAIT], n_waits=1) == [[2, 3, MARK, 4]]


def test_prompts_of_different_lengths_have_budgets_of_their_own():
    alone = [think(4, [prompt], wait=[WAIT], n_waits=1)[0] for prompt in ([1], [5, 2], [3])]
    assert think(4, [[1], [5, 2], [3]], wait=[WAIT], n_waits=1) == alone
    assert alone[1:] == [[3, WAIT, 2, 3, MARK, 4], [WAIT, 2, 3, MARK, 4]]


def test_force_budget_refuses():
    with pytest.raises(ValueError, match="at_most=-1"):
        think(-1)
    with pytest.raises(ValueError, match="n_waits=1"):
        think(3, n_waits=1)
