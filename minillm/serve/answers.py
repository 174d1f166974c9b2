"""The JSON of answers and errors, and the text that tokens become on the way."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Callable
from typing import Any

from minillm.serve.reading import Asked

UNKNOWN = "\ufffd".encode()


class Text:
    """Tokens become text; nothing is given out that may still turn into a stop.

    Args:
        token_bytes: id → bytes, such as `Tokenizer.token_bytes`.
        stops: texts that end the answer and are not part of it.

    Attributes:
        n_tokens: how many tokens came.
        stopped: whether a stop was met; nothing follows it.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stops: tuple[str, ...] = ()):
        self._token_bytes, self._stops = token_bytes, stops
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.n_tokens, self.stopped = 0, False

    def add(self, token: int) -> str:
        """What may be given out after one more token; often nothing, never half a character."""
        self.n_tokens += 1
        try:
            new = self._token_bytes(token)
        except ValueError:  # models are built with a few more ids than their tokenizers name
            new = UNKNOWN
        return self._give(self._characters.decode(new), last=False)

    def end(self) -> str:
        """The rest, once no token follows."""
        return self._give(self._characters.decode(b"", final=True), last=True)

    def _give(self, new: str, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        n_held = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of a text may be the beginning of a stop."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


class Answer:
    """The JSON of one answer, whole or piece by piece."""

    def __init__(self, asked: Asked, model_name: str):
        self.asked = asked
        kind = "chat.completion" if asked.chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model_name,
        }

    def whole(self, text: str, finish: str, n_new: int) -> dict:
        content = {"message": {"role": "assistant", "content": text}}
        choice = content if self.asked.chat else {"text": text}
        return self._head | self._choices(choice, finish) | {"usage": self.usage(n_new)}

    def opening(self) -> dict | None:
        """The first piece of a chat says whose turn it is."""
        return self._piece({"role": "assistant", "content": ""}) if self.asked.chat else None

    def piece(self, text: str) -> dict:
        return self._piece({"content": text} if self.asked.chat else text)

    def ending(self, finish: str) -> dict:
        return self._piece({} if self.asked.chat else "", finish)

    def last(self, n_new: int) -> dict:
        """The piece after the ending that only counts."""
        return self.ending("") | {"choices": [], "usage": self.usage(n_new)}

    def usage(self, n_new: int) -> dict:
        n_prompt = len(self.asked.request.prompt)
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_new,
            "total_tokens": n_prompt + n_new,
        }

    def _piece(self, content: Any, finish: str | None = None) -> dict:
        if not self.asked.chat:
            return self._head | self._choices({"text": content}, finish)
        head = self._head | {"object": "chat.completion.chunk"}
        return head | self._choices({"delta": content}, finish)

    def _choices(self, content: dict, finish: str | None) -> dict:
        return {"choices": [{"index": 0, **content, "logprobs": None, "finish_reason": finish}]}


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict:
    """An error as OpenAI's clients expect it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
