"""The JSON of answers and errors."""

from __future__ import annotations

import time
import uuid
from typing import Any

from minillm.serve.reading import Asked


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
