"""The HTTP side: routes, limits, errors, streaming (server-sent events)."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from minillm.infer.scheduler import QueueFull
from minillm.infer.text import Text
from minillm.serve.answers import Answer, error_body
from minillm.serve.reading import Asked, BadRequest, Reader
from minillm.serve.worker import Stream, Worker, WorkerStopped

MAX_BODY = 1 << 20  # bytes
BODY_SECONDS = 30.0  # to send a body
ANSWER_SECONDS = 600.0  # to compute and to read an answer
GONE = 499  # the client left; nobody reads this


def make_app(
    worker: Worker,
    reader: Reader,
    model_name: str,
    *,
    token: str | None = None,
    answer_seconds: float = ANSWER_SECONDS,
) -> Starlette:
    """The application, for uvicorn or any other ASGI server.

    Args:
        worker: computes the answers; whoever made it closes it.
        reader: understands the requests.
        model_name: what clients see.
        token: what clients must send as `Authorization: Bearer TOKEN`; None lets everybody in.
        answer_seconds: after so long an answer is broken off, whoever was slow.
    """
    service = Service(worker, reader, model_name, token, answer_seconds)
    return Starlette(
        routes=[
            Route("/health", service.health),
            Route("/v1/models", service.models),
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
            Route("/v1/completions", service.completion, methods=["POST"]),
        ],
        exception_handlers={
            BadRequest: _bad_request,
            QueueFull: _full,
            WorkerStopped: _stopped,
            ClientDisconnect: lambda request, error: Response(status_code=GONE),
            HTTPException: _http_error,
        },
    )


class Service:
    """What the routes do."""

    def __init__(self, worker, reader, model_name, token, answer_seconds):
        self.worker: Worker = worker
        self.reader: Reader = reader
        self.model_name: str = model_name
        self.token: str | None = token
        self.answer_seconds: float = answer_seconds

    async def health(self, request: Request) -> Response:
        """Open to everybody: whether the server works, and how busy it is."""
        state = {"running": self.worker.n_running, "waiting": self.worker.n_waiting}
        if self.worker.error is not None:
            return JSONResponse({"status": "failed", **state}, 503)
        return JSONResponse({"status": "ok", **state})

    async def models(self, request: Request) -> Response:
        self._check_token(request)
        model = {"id": self.model_name, "object": "model", "created": 0, "owned_by": "minillm"}
        return JSONResponse({"object": "list", "data": [model]})

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, self.reader.chat)

    async def completion(self, request: Request) -> Response:
        return await self._answer(request, self.reader.completion)

    async def _answer(self, request: Request, read: Callable[[bytes], Asked]) -> Response:
        self._check_token(request)
        body = await _body(request)
        asked = await asyncio.to_thread(read, body)  # a long text takes a while to encode
        try:
            stream = await self.worker.submit(asked.request)
        except ValueError as error:
            raise BadRequest(str(error)) from error
        text = Text(self.reader.tokenizer.token_bytes, asked.stops)
        answer = Answer(asked, self.model_name)
        if asked.stream:
            return Streamed(self, stream, _events(stream, text, answer))
        try:
            async with asyncio.timeout(self.answer_seconds):
                return await _unless_gone(request, _whole(stream, text, answer))
        except TimeoutError:
            raise HTTPException(504, "the answer took too long") from None
        finally:
            self.worker.cancel(stream)

    def _check_token(self, request: Request) -> None:
        if self.token is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        fits = hmac.compare_digest(given.encode(), self.token.encode())
        if kind.lower() != "bearer" or not fits:
            raise HTTPException(401, "wrong or missing token: send Authorization: Bearer TOKEN")


class Streamed(StreamingResponse):
    """Server-sent events; however the response ends, computing for it ends too."""

    def __init__(self, service: Service, stream: Stream, events: AsyncIterator[str]):
        super().__init__(events, media_type="text/event-stream")
        self._service, self._stream = service, stream

    async def __call__(self, scope, receive, send) -> None:
        try:
            async with asyncio.timeout(self._service.answer_seconds):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            pass  # the connection closes without the end mark, which tells the client
        finally:
            self._service.worker.cancel(self._stream)


async def _pieces(stream: Stream, text: Text) -> AsyncIterator[tuple[str, str | None]]:
    """(new text, why the answer ended or None), the last with a reason."""
    async for event in stream:
        piece = "" if event.token is None else text.add(event.token)
        if text.stopped:
            yield piece, "stop"
            return
        if event.finish:
            piece += text.end()
            yield piece, "stop" if text.stopped else event.finish
        elif piece:
            yield piece, None


async def _whole(stream: Stream, text: Text, answer: Answer) -> Response:
    parts, finish = [], None
    async for piece, why in _pieces(stream, text):
        parts.append(piece)
        finish = why
    return JSONResponse(answer.whole("".join(parts), finish, text.n_tokens))


async def _events(stream: Stream, text: Text, answer: Answer) -> AsyncIterator[str]:
    if opening := answer.opening():
        yield _event(opening)
    try:
        async for piece, finish in _pieces(stream, text):
            if piece:
                yield _event(answer.piece(piece))
            if finish:
                yield _event(answer.ending(finish))
    except WorkerStopped as error:  # too late for a status code
        yield _event(error_body(str(error), "server_error"))
        return
    if answer.asked.usage:
        yield _event(answer.last(text.n_tokens))
    yield "data: [DONE]\n\n"


def _event(content: dict) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _body(request: Request) -> bytes:
    """The whole body, unless it is too long or too slow."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY:
                    raise HTTPException(413, f"the body is longer than {MAX_BODY} bytes")
    except TimeoutError:
        raise HTTPException(408, f"the body took longer than {BODY_SECONDS:.0f} s") from None
    return bytes(body)


async def _unless_gone(request: Request, answering) -> Response:
    """The response, or none if the client leaves before it is there."""
    answer = asyncio.ensure_future(answering)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else Response(status_code=GONE)
    finally:
        answer.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _bad_request(request: Request, error: BadRequest) -> Response:
    return JSONResponse(error_body(str(error), "invalid_request_error", error.param), 400)


async def _full(request: Request, error: QueueFull) -> Response:
    body = error_body(str(error), "overloaded_error", code="queue_full")
    return JSONResponse(body, 429, headers={"Retry-After": "1"})


async def _stopped(request: Request, error: WorkerStopped) -> Response:
    return JSONResponse(error_body(str(error), "server_error"), 503)


async def _http_error(request: Request, error: HTTPException) -> Response:
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    body = error_body(error.detail, kind)
    return JSONResponse(body, error.status_code, headers=error.headers)
