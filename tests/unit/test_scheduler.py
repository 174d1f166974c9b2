"""The scheduler: each request gets what it would get alone, in order, and returns all blocks."""

import random
from collections import defaultdict

import pytest
import torch
from helpers import randomised

from minillm.adapt.quant_cache import Int8Cache, Int8Pool
from minillm.infer.engine import generate
from minillm.infer.sampling import Sampler
from minillm.infer.scheduler import Event, QueueFull, Request, Scheduler
from minillm.infer.weight_only import weight_only
from minillm.model.config import gpt2_config, llama_config
from minillm.model.transformer import Transformer

SIZE = {"d_model": 24, "n_layers": 2, "n_heads": 4, "max_length": 40}
GREEDY = Sampler(temperature=0)
SAMPLERS = (GREEDY, Sampler(), Sampler(0.8, top_p=0.9), Sampler(repetition_penalty=1.3))


@pytest.fixture(scope="module")
def model():
    return randomised(Transformer(llama_config(19, **SIZE, n_kv_heads=2)))


def alone(model, request, **more):
    """What `generate` gives for this request and nothing else."""
    return generate(
        model,
        [request.prompt],
        max_new_tokens=request.max_new_tokens,
        stop_tokens=request.stop_tokens,
        sampler=request.sampler,
        generator=torch.Generator().manual_seed(request.seed),
        **more,
    )[0]


def finished(scheduler, n_steps=10_000):
    """Step until nothing is left: the tokens of each request, and how it ended."""
    tokens, ends = defaultdict(list), {}
    for _ in range(n_steps):
        for id, token, finish in scheduler.step():
            assert id not in ends, "an event after the end"
            tokens[id] += [] if token is None else [token]
            if finish:
                ends[id] = finish
        if scheduler.idle:
            break
    assert scheduler.pool.n_free == scheduler.pool.n_blocks
    return tokens, ends


def some_request(moves):
    """Few different beginnings, so that many requests share theirs."""
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9][: moves.randrange(10)]
    prompt += [moves.randrange(19) for _ in range(moves.randint(1, 6))]
    return Request(
        prompt,
        max_new_tokens=moves.randint(1, 12),
        stop_tokens=moves.choice([(), (7,), (3, 11)]),
        sampler=moves.choice(SAMPLERS),
        seed=moves.randrange(1000),
    )


def test_a_thousand_requests_that_come_and_go_at_random():
    """Bursts, pauses, cancellations and too few blocks: nobody starves, nobody is mixed up."""
    model = randomised(Transformer(llama_config(19, **SIZE | {"n_layers": 1}, n_kv_heads=2)))
    moves = random.Random(0)
    scheduler = Scheduler(model, n_blocks=13, block_size=4, max_batch=6, max_waiting=12)
    requests, tokens, ends, order, n_refused = {}, defaultdict(list), {}, [], 0
    for _ in range(5_000):
        if len(requests) == 1000 and scheduler.idle:
            break
        for _ in range(min(moves.choice([0, 0, 1, 4]), 1000 - len(requests))):
            request = some_request(moves)
            try:
                requests[scheduler.add(request)] = request
            except QueueFull:
                n_refused += 1
        if requests and moves.random() < 0.1:
            scheduler.cancel(moves.choice(list(requests)[-20:]))
        events = scheduler.step()
        of_step = [event.id for event in events]
        assert len(of_step) == len(set(of_step)), "two events of one request in a step"
        assert scheduler.n_running <= 6
        for id, token, finish in events:
            assert id not in ends, "an event after the end"
            if token is not None:
                order += [] if tokens[id] else [id]
                tokens[id].append(token)
            if finish:
                ends[id] = finish
    assert scheduler.pool.n_free == 13
    assert order == sorted(order), "somebody overtook"
    assert set(ends) == set(requests)
    for id, request in requests.items():
        expected = alone(model, request)
        got = tokens[id]
        if ends[id] == "cancelled":
            assert got == expected[: len(got)]
        else:
            assert got == expected
            assert (ends[id] == "length") == (len(got) == request.max_new_tokens)
    kinds = list(ends.values())
    assert min(kinds.count(kind) for kind in ("stop", "length", "cancelled")) > 30
    assert min(scheduler.n_preempted, scheduler.n_found, n_refused) > 30


def test_each_step_gives_each_running_request_one_token(model):
    scheduler = Scheduler(model, n_blocks=40, max_batch=2)
    first, second, third = (scheduler.add(Request([i], 2 + i)) for i in (1, 2, 3))
    assert (scheduler.n_waiting, scheduler.n_running) == (3, 0)
    steps = [[(e.id, e.finish) for e in scheduler.step()] for _ in range(8)]
    assert steps == [
        [(first, None), (second, None)],
        [(first, None), (second, None)],
        [(first, "length"), (second, None), (third, None)],  # joins as soon as there is a place
        [(second, "length"), (third, None)],
        [(third, None)],
        [(third, None)],
        [(third, "length")],
        [],
    ]
    assert scheduler.idle


def test_what_others_have_read_is_not_read_again(model):
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    scheduler = Scheduler(model, n_blocks=40, block_size=4, max_batch=2)
    for tail in ([], [3], [4]):
        scheduler.add(Request([*prompt, *tail], 4, sampler=GREEDY))
    tokens, _ = finished(scheduler)
    assert (scheduler.n_read, scheduler.n_found) == (9 + 2 + 2, 0 + 8 + 8)
    answer = [*prompt, *tokens[0]]
    scheduler.add(
        Request([*answer, 5], 1)
    )  # the answer is found too, as in the next turn of a chat
    scheduler.add(Request(prompt[:8], 1))  # whole blocks, but the last token has to be read
    finished(scheduler)
    assert (scheduler.n_read, scheduler.n_found) == (13 + 2 + 4, 16 + 12 + 4)


def test_when_blocks_run_out_the_youngest_waits_and_loses_nothing(model):
    """Three rows of 4 blocks in the end, 6 blocks: the third and then the second give way."""
    scheduler = Scheduler(model, n_blocks=6, block_size=4, max_batch=3)
    requests = [Request([i, i], 14, seed=i) for i in (1, 2, 3)]
    ids = [scheduler.add(request) for request in requests]
    ends = []
    tokens = defaultdict(list)
    for _ in range(100):
        for id, token, finish in scheduler.step():
            tokens[id].append(token)
            ends += [id] if finish else []
    assert scheduler.n_preempted >= 2
    assert ends == ids
    assert [tokens[id] for id in ids] == [alone(model, request) for request in requests]


def test_a_small_request_does_not_overtake_one_that_waits_for_blocks(model):
    scheduler = Scheduler(model, n_blocks=4, block_size=4, max_batch=3)
    scheduler.add(Request([1] * 9, 4))
    big = scheduler.add(Request([2] * 9, 4))
    small = scheduler.add(Request([3], 1))
    seen = []
    for _ in range(50):
        seen += [event.id for event in scheduler.step()]
    assert seen.index(big) < seen.index(small)


def test_cancelling_frees_at_once_and_is_reported_with_the_next_step(model):
    scheduler = Scheduler(model, n_blocks=40, max_batch=1)
    running, waiting = scheduler.add(Request([1], 9)), scheduler.add(Request([2], 9))
    assert [event.id for event in scheduler.step()] == [running]
    scheduler.cancel(running), scheduler.cancel(waiting)
    scheduler.cancel(running), scheduler.cancel(77)  # no effect
    assert scheduler.pool.n_free == 40 and not scheduler.idle
    assert (scheduler.n_running, scheduler.n_waiting) == (0, 0)
    assert scheduler.step() == [
        Event(running, None, "cancelled"),
        Event(waiting, None, "cancelled"),
    ]
    assert scheduler.idle
    scheduler.cancel(running)
    assert scheduler.step() == []


def test_rounded_weights_and_rounded_blocks_batch_as_well(model):
    fast = weight_only(model)
    scheduler = Scheduler(fast, n_blocks=40, block_size=4, pool_type=Int8Pool)
    requests = [Request([i, 2 * i, 3], 8, sampler=GREEDY) for i in range(6)]
    ids = [scheduler.add(request) for request in requests]
    tokens, _ = finished(scheduler)
    expected = [alone(fast, request, cache_type=Int8Cache) for request in requests]
    assert [tokens[id] for id in ids] == expected


def test_what_cannot_be_done_is_refused_and_changes_nothing(model):
    scheduler = Scheduler(model, n_blocks=5, block_size=4, max_waiting=2)
    for request, words in (
        (Request([], 3), "is empty"),
        (Request([1, 19], 3), "outside 0…18"),
        (Request([1, -1], 3), "outside 0…18"),
        (Request([1], 0), "max_new_tokens must be at least 1"),
        (Request([1] * 30, 11), "max_length is 40"),
        (Request([1] * 12, 10), "5 blocks of 4 tokens cannot hold"),
    ):
        with pytest.raises(ValueError, match=words):
            scheduler.add(request)
    assert scheduler.idle
    scheduler.add(Request([1] * 12, 9))  # its 21st token is chosen, and never read
    scheduler.add(Request([1], 1))
    with pytest.raises(QueueFull, match="2 requests are waiting"):
        scheduler.add(Request([1], 1))
    assert [len(tokens) for tokens in finished(scheduler)[0].values()] == [9, 1]
    for wrong in ({"max_batch": 0}, {"max_waiting": 0}):
        with pytest.raises(ValueError, match="both must be at least 1"):
            Scheduler(model, n_blocks=5, **wrong)


def test_learned_positions_up_to_the_last_one():
    model = randomised(Transformer(gpt2_config(19, **SIZE)))
    scheduler = Scheduler(model, n_blocks=30, block_size=16)
    requests = [Request([5] * 30, 10), Request([7], 39), Request([2] * 39, 1)]
    ids = [scheduler.add(request) for request in requests]
    tokens, _ = finished(scheduler)
    assert [tokens[id] for id in ids] == [alone(model, request) for request in requests]
