"""Reading requests, and the worker's thread; no network here."""

import asyncio
import json

import pytest

from minillm.data.tokenizer import Tokenizer
from minillm.infer.chat import CHATML
from minillm.infer.scheduler import QueueFull, Request, Scheduler
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer
from minillm.serve.__main__ import main, make_engine
from minillm.serve.reading import BadRequest
from minillm.serve.worker import Worker, WorkerStopped

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOKENIZER = Tokenizer.train(["the cat sat on the mat, the hat"], 300, special_tokens=SPECIAL)
MODEL = Transformer(
    llama_config(TOKENIZER.vocab_size, d_model=32, n_layers=2, n_heads=2, max_length=64)
)
HELLO = [{"role": "user", "content": "the cat"}]


def reader(**settings):
    return make_engine(MODEL, TOKENIZER, **settings)[0]


def read(body, **settings):
    return reader(**settings).chat(json.dumps(body).encode())


def test_a_body_becomes_the_request_it_describes():
    body = {
        "messages": [
            {"role": "developer", "content": "sat"},
            {"role": "user", "content": [{"type": "text", "text": "the "}, {"text": "cat"}]},
        ],
        "model": "whatever",
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "max_completion_tokens": 5,
        "stop": "x",
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 1,
        "logprobs": None,
    }
    asked = read(body)
    expected = CHATML.encode(TOKENIZER, [("system", "sat"), ("user", "the cat")])
    assert asked.request.prompt == expected
    assert (asked.request.max_new_tokens, asked.request.seed) == (5, 7)
    assert (asked.request.sampler.temperature, asked.request.sampler.top_p) == (0.5, 0.9)
    assert set(asked.request.stop_tokens) == {0, 2}
    assert (asked.stops, asked.stream, asked.usage, asked.chat) == (("x",), True, True, True)


def test_the_servers_instructions_stand_where_a_conversation_brings_none():
    def prompt(messages):
        return read({"messages": messages, "max_tokens": 1}, system="sat").request.prompt

    assert prompt(HELLO) == CHATML.encode(TOKENIZER, [("system", "sat"), ("user", "the cat")])
    own = [{"role": "system", "content": "hat"}, *HELLO]
    assert prompt(own) == CHATML.encode(TOKENIZER, [("system", "hat"), ("user", "the cat")])


def test_special_tokens_in_a_message_stay_text():
    asked = read({"messages": [{"role": "user", "content": "<|im_end|>"}], "max_tokens": 1})
    assert asked.request.prompt.count(TOKENIZER.special_tokens["<|im_end|>"]) == 1  # the template's


def test_without_a_length_an_answer_gets_the_room_there_is():
    n_prompt = len(CHATML.encode(TOKENIZER, [("user", "the cat")]))
    assert read({"messages": HELLO}).request.max_new_tokens == 64 - n_prompt
    assert read({"messages": HELLO}, max_new_tokens=9).request.max_new_tokens == 9


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": "hello"}, "messages", "expected a list"),
        ({"messages": None}, "messages", "at least one"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]", "te"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0]", "must be text"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "a"}]}, "messages", "last"),
        ({"max_tokens": 0}, "max_tokens", "between 1 and"),
        ({"max_tokens": 60}, "max_tokens", "shorten"),
        ({"max_tokens": True}, "max_tokens", "expected int"),
        ({"max_tokens": 1.5}, "max_tokens", "expected int"),
        ({"temperature": "hot"}, "temperature", "expected int or float"),
        ({"temperature": float("nan")}, "temperature", "finite"),
        ({"temperature": -1}, None, "temperature"),
        ({"top_p": 7}, None, "top_p"),
        ({"stop": ["a", ""]}, "stop", "empty"),
        ({"stop": list("abcde")}, "stop", "up to 4"),
        ({"n": 2}, "n", "not supported"),
        ({"tools": [{"x": 1}]}, "tools", "not supported"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"something_new": 1}, "something_new", "not supported"),
        ({"messages": [{"role": "user", "content": "cat " * 50}]}, "max_tokens", "shorten"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(change, param, words):
    with pytest.raises(BadRequest, match=words.replace("(", r"\(")) as error:
        read({"messages": HELLO} | change)
    assert error.value.param == param


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'"x"'])
def test_a_body_that_is_no_json_object_is_refused(body):
    with pytest.raises(BadRequest, match="the body is"):
        reader().chat(body)


def test_completions_take_text_or_ids():
    ids = TOKENIZER.encode("the cat")
    for prompt in ("the cat", ids):
        body = json.dumps({"prompt": prompt, "max_tokens": 2}).encode()
        assert reader().completion(body).request.prompt == ids
    for prompt in ("", [], ["a"], [True], [[1]]):
        with pytest.raises(BadRequest, match="prompt: expected"):
            reader().completion(json.dumps({"prompt": prompt}).encode())


def request(prompt, n=6, seed=0):
    return Request(prompt=prompt, max_new_tokens=n, seed=seed)


async def collect(worker, asked):
    return [event.token async for event in await worker.submit(asked)]


def test_the_worker_brings_each_request_its_own_tokens():
    asked = [request([1 + i, 5, 9], n=3 + i, seed=i) for i in range(5)]
    alone = []
    for one in asked:
        scheduler = Scheduler(MODEL, n_blocks=16)
        scheduler.add(one)
        tokens = []
        while not scheduler.idle:
            tokens += [event.token for event in scheduler.step()]
        alone.append(tokens)

    async def together():
        return await asyncio.gather(*(collect(worker, one) for one in asked))

    worker = Worker(Scheduler(MODEL, n_blocks=16))
    assert asyncio.run(together()) == alone
    assert worker.n_open == 0
    worker.close()


def test_errors_reach_whoever_asked_and_nobody_else():
    async def three():
        good, bad = request([1, 2]), request([1, 999])
        results = await asyncio.gather(
            collect(worker, good), collect(worker, bad), return_exceptions=True
        )
        return results

    worker = Worker(Scheduler(MODEL, n_blocks=16, max_batch=1, max_waiting=1))
    tokens, error = asyncio.run(three())
    assert len(tokens) == 6 and isinstance(error, ValueError) and "outside" in str(error)
    worker.close()


def test_a_full_queue_says_so():
    async def many():
        asked = [collect(worker, request([1, 2], n=30)) for _ in range(20)]
        return await asyncio.gather(*asked, return_exceptions=True)

    worker = Worker(Scheduler(MODEL, n_blocks=16, max_batch=1, max_waiting=1))
    results = asyncio.run(many())
    refused = [result for result in results if isinstance(result, QueueFull)]
    answered = [result for result in results if isinstance(result, list)]
    assert refused and answered and len(refused) + len(answered) == 20
    assert all(len(tokens) == 30 for tokens in answered)
    worker.close()


def test_cancelling_ends_a_stream_and_frees_its_place():
    async def leave_early():
        stream = await worker.submit(request([1, 2], n=60))
        finish = None
        async for event in stream:
            worker.cancel(stream)
            finish = event.finish
        return finish

    worker = Worker(Scheduler(MODEL, n_blocks=16))
    assert asyncio.run(leave_early()) in ("cancelled", "length")
    assert worker.n_open == 0
    worker.close()


def test_a_failure_while_computing_ends_every_stream_with_an_error():
    class Broken(Scheduler):
        def step(self):
            raise RuntimeError("the memory is on fire")

    async def ask():
        with pytest.raises(WorkerStopped, match="on fire"):
            await collect(worker, request([1, 2]))
        with pytest.raises(WorkerStopped, match="on fire"):
            await worker.submit(request([1, 2]))

    worker = Worker(Broken(MODEL, n_blocks=16))
    asyncio.run(ask())
    worker.close()


def test_a_closed_worker_takes_no_request():
    worker = Worker(Scheduler(MODEL, n_blocks=16))
    worker.close()
    with pytest.raises(WorkerStopped, match="closing"):
        asyncio.run(asyncio.wait_for(worker.submit(request([1, 2])), timeout=9))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["smollm2", "--host", "0.0.0.0"], "token"),
        (["smollm2", "--token-file", "no-such-file"], "no-such-file"),
        (["no-such-model.gguf"], "no-such-model"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, words, capsys, monkeypatch):
    monkeypatch.delenv("MINILLM_TOKEN", raising=False)
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and words in lines[0]


def test_impossible_limits_are_refused():
    for settings in ({"context": 1}, {"context": 65}, {"max_new_tokens": 0}, {"max_batch": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            make_engine(MODEL, TOKENIZER, **settings)
