"""The server as its clients meet it: over real connections, with the real `openai` package.

Expected answers come from `generate`, one prompt at a time.
"""

import asyncio
import json
import socket
import threading
from contextlib import closing

import httpx
import openai
import pytest
import uvicorn

from minillm.data.tokenizer import Tokenizer
from minillm.infer.chat import CHATML
from minillm.infer.engine import generate
from minillm.infer.sampling import Sampler
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer
from minillm.serve.__main__ import make_engine
from minillm.serve.app import make_app
from minillm.serve.worker import Worker

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOKENIZER = Tokenizer.train(["the cat sat on the mat, the hat"], 300, special_tokens=SPECIAL)
MODEL = Transformer(
    llama_config(TOKENIZER.vocab_size, d_model=32, n_layers=2, n_heads=2, max_length=96)
)
TOKEN = "open sesame"


class Server:
    """A server in a thread, on a port that the system chooses."""

    def __init__(self, token=TOKEN, answer_seconds=600.0, **settings):
        reader, self.scheduler = make_engine(MODEL, TOKENIZER, **settings)
        self.worker = Worker(self.scheduler)
        app = make_app(self.worker, reader, "tiny", token=token, answer_seconds=answer_seconds)
        config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self):
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join()
        self.worker.close()

    def settle(self):
        """Wait until nothing is computed any more, then count what is left behind."""
        while self.worker.n_open or not self.scheduler.idle:
            self._thread.join(0.01)
        assert self.scheduler.n_running == self.scheduler.n_waiting == 0
        assert not any(self.scheduler.pool.references)

    def client(self, **settings):
        settings = {"api_key": TOKEN, "max_retries": 0, "timeout": 100} | settings
        return openai.OpenAI(base_url=f"{self.url}/v1", **settings)

    def post(self, path="/v1/chat/completions", token=TOKEN, **content):
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.post(self.url + path, headers=headers, timeout=100, **content)


@pytest.fixture(scope="module")
def server():
    with Server(max_waiting=300) as running:
        yield running


def messages(i):
    return [{"role": "user", "content": f"the {'cat sat ' * (i % 5)}{i}"}]


def greedy(prompt, n):
    """The text of `n` greedy tokens, and why it ended."""
    stops = (0, 2)
    (tokens,) = generate(
        MODEL, [prompt], max_new_tokens=n, stop_tokens=stops, sampler=Sampler(temperature=0)
    )
    text = b"".join(map(TOKENIZER.token_bytes, tokens)).decode("utf-8", "replace")
    return text, "length" if len(tokens) == n else "stop"


def expected(i, n=20):
    return greedy(CHATML.encode(TOKENIZER, [("user", messages(i)[0]["content"])]), n)


def test_a_chat_is_answered_as_generate_answers_it(server):
    answer = server.client().chat.completions.create(
        model="tiny", messages=messages(3), temperature=0, max_tokens=20
    )
    text, finish = expected(3)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == (text, finish)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    server.settle()


def test_a_stream_brings_the_same_text_in_pieces(server):
    stream = server.client().chat.completions.create(
        model="tiny",
        messages=messages(3),
        temperature=0,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert ("".join(pieces), chunks[-1].choices[0].finish_reason) == expected(3)
    assert sum(map(bool, pieces)) > 1
    assert last.usage.completion_tokens <= 20 and not last.choices
    server.settle()


def test_completions_stops_and_seeds(server):
    client = server.client()
    text, _ = greedy(TOKENIZER.encode("the cat"), 20)
    ask = {"model": "tiny", "prompt": "the cat", "max_tokens": 20}
    assert client.completions.create(**ask, temperature=0).choices[0].text == text
    stop = text[6:8]
    choice = client.completions.create(**ask, temperature=0, stop=[stop]).choices[0]
    assert (choice.text, choice.finish_reason) == (text[: text.find(stop)], "stop")
    same = {client.completions.create(**ask, seed=5).choices[0].text for _ in range(2)}
    others = {client.completions.create(**ask, seed=seed).choices[0].text for seed in range(1, 6)}
    assert len(same) == 1 and same <= others and len(others) == 5
    assert client.models.list().data[0].id == "tiny"
    server.settle()


def test_errors_are_those_that_clients_know(server):
    ask = {"model": "tiny", "messages": messages(0)}
    with pytest.raises(openai.AuthenticationError, match="token"):
        server.client(api_key="wrong").chat.completions.create(**ask)
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    with pytest.raises(openai.BadRequestError, match="between 1 and") as error:
        server.client().chat.completions.create(**ask, max_tokens=10**6)
    assert error.value.param == "max_tokens"
    with pytest.raises(openai.NotFoundError):
        server.client().embeddings.create(model="tiny", input="x")
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok", "running": 0, "waiting": 0}
    assert server.post(content=b"\x00{").status_code == 400
    assert server.post(content=b"x" * (1 << 20) + b"x").status_code == 413
    assert server.post("/v1/completions", json={"prompt": [1, 10**9]}).status_code == 400
    assert httpx.get(f"{server.url}/v1/chat/completions").status_code == 405
    server.settle()


async def well_behaved(server, client, i):
    answer = await client.chat.completions.create(
        model="tiny", messages=messages(i), temperature=0, max_tokens=20
    )
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == expected(i)


async def streaming(server, client, i):
    stream = await client.chat.completions.create(
        model="tiny", messages=messages(i), temperature=0, max_tokens=20, stream=True
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == expected(i)[0]


async def leaving(server, client, i):
    """Reads one piece and goes."""
    stream = await client.chat.completions.create(
        model="tiny", messages=messages(i), temperature=0, stream=True
    )
    async for _ in stream:
        break
    await stream.close()


async def impatient(server, client, i):
    """Goes before there is anything to read."""
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(raw_request({"messages": messages(i), "stream": i % 2 == 0}))
    await writer.drain()
    writer.close()


async def malformed(server, client, i):
    _, body = await exchange(server, b'{"messages": [' + b"x" * i)
    assert b"not JSON" in body


async def oversized(server, client, i):
    with pytest.raises(openai.BadRequestError, match="shorten"):
        long = [{"role": "user", "content": "sat on " * 200}]
        await client.chat.completions.create(model="tiny", messages=long)


async def half_a_body(server, client, i):
    """Promises more than it sends."""
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(raw_request({"messages": messages(i)})[:-7])
    await writer.drain()
    writer.close()


def raw_request(content):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


async def exchange(server, content):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(raw_request(content))
    response = await reader.read()
    writer.close()
    head, _, body = response.partition(b"\r\n\r\n")
    return head, body


BEHAVIOURS = (
    well_behaved, streaming, leaving, streaming, impatient, well_behaved, malformed, oversized,
    half_a_body, streaming,
)  # fmt: skip


def test_two_hundred_clients_at_once_of_every_kind(server):
    """Every right answer is the right one, and nothing is left behind."""

    async def everybody():
        limits = httpx.Limits(max_connections=None)
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1",
            api_key=TOKEN,
            max_retries=0,
            http_client=httpx.AsyncClient(limits=limits, timeout=300),
        ) as client:
            tasks = [BEHAVIOURS[i % len(BEHAVIOURS)](server, client, i) for i in range(200)]
            return await asyncio.gather(*tasks, return_exceptions=True)

    with closing(socket.create_connection(("127.0.0.1", server.port))) as slow:
        slow.sendall(raw_request({"messages": messages(4), "temperature": 0, "stream": True}))
        results = asyncio.run(everybody())
        assert [error for error in results if error is not None] == []
        server.settle()  # though the slow client has not read a byte yet
        received = b""
        while piece := slow.recv(4096):
            received += piece
    assert received.count(b"data: ") > 10 and b"[DONE]" in received
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok", "running": 0, "waiting": 0}


@pytest.mark.parametrize("stream", [True, False])
def test_computing_ends_when_the_client_leaves(stream):
    with Server() as server:
        step, cancel = server.scheduler.step, server.scheduler.cancel
        finishes, cancelled = [], threading.Event()

        def noted(number):
            cancel(number)
            cancelled.set()

        def step_after_news():
            """After three steps do nothing until somebody cancels, for 30 s at most."""
            nonlocal patience
            if len(finishes) == 3 and patience and not cancelled.wait(0.01):
                patience -= 1
                return []
            events = step()
            finishes.extend(event.finish for event in events)
            return events

        patience = 3000
        server.scheduler.cancel = noted
        server.scheduler.step = step_after_news
        with closing(socket.create_connection(("127.0.0.1", server.port))) as client:
            body = {"messages": messages(1), "temperature": 0, "stream": stream}
            client.sendall(raw_request(body))
            if stream:
                client.recv(10)
            while len(finishes) < 3:
                cancelled.wait(0.01)
        server.settle()
        assert finishes == [None, None, None, "cancelled"]


def test_a_full_server_says_so_and_recovers():
    with Server(max_batch=1, max_waiting=2) as small:

        async def crowd():
            asked = [exchange(small, {"messages": messages(i), "seed": i}) for i in range(20)]
            return await asyncio.gather(*asked)

        heads = [head for head, _ in asyncio.run(crowd())]
        statuses = [int(head.split()[1]) for head in heads]
        assert set(statuses) == {200, 429}
        assert all(b"retry-after: 1" in h for h, s in zip(heads, statuses, strict=True) if s == 429)
        small.settle()
        # The client's own retries are enough to get through.
        answer = small.client(max_retries=3).chat.completions.create(
            model="tiny", messages=messages(1), temperature=0, max_tokens=20
        )
        assert answer.choices[0].message.content == expected(1)[0]


def test_an_answer_that_takes_too_long_is_broken_off():
    with Server(answer_seconds=1e-4) as hasty:
        assert hasty.post(json={"messages": messages(1)}).status_code == 504
        try:
            response = hasty.post(json={"messages": messages(1), "stream": True})
            assert "[DONE]" not in response.text
        except httpx.RemoteProtocolError:
            pass  # closed before anything was sent
        hasty.settle()


def test_without_a_token_everybody_is_served():
    with Server(token=None) as free:
        answer = free.client(api_key="none").completions.create(
            model="tiny", prompt="the", max_tokens=1
        )
        assert answer.choices[0].finish_reason in ("length", "stop")
