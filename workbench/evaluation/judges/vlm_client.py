"""One judge behind an OpenAI-compatible API: who it is, and how a question gets its answer or a reason why not.

A judge NAME (A, B, ...) is three environment variables, never keys of a recipe:

    WORKBENCH_JUDGE_A_BASE_URL   https://.../v1
    WORKBENCH_JUDGE_A_MODEL      the model's name there
    WORKBENCH_JUDGE_A_API_KEY    may be absent for a server that asks for none

The key lives in `Endpoint.key` and in the client alone. No message of ours quotes what a server says without the key
being cut out of it first, and errors of the library are never chained: their text may repeat a request.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from workbench.common.errors import UserError
from workbench.evaluation.judges.vlm_reply import Malformed
from workbench.recipe.config import Vlm

Parsed = TypeVar("Parsed")
NO_KEY = "none"
"""Sent where no key is set: the client insists on one."""
FATAL = (401, 403, 404)
"""Answers that no other question to this judge would change."""
PASSING = (408, 409, 425, 429)
"""Answers below 500 that may be another a moment later."""
BACKOFF_S, LONGEST_BACKOFF_S, LONGEST_RETRY_AFTER_S = 1.0, 30.0, 300.0
MAX_MISSING_AT_FIRST = 16
"""A judge that has left so many questions unanswered and answered none is given up: it is down, or asked wrongly."""
MAX_QUOTED = 160
"""Characters of a server's own words in a message."""


class Missing(Exception):
    """No valid answer after all attempts; the message is the reason that is counted and shown."""


class Stopped(Exception):
    """The evaluation ends; the question was given up unanswered."""


@dataclass(frozen=True)
class Endpoint:
    """Where a judge is asked. key: never shown."""

    name: str
    base_url: str
    model: str
    key: str = field(repr=False)

    def redact(self, text: str) -> str:
        """`text` without the key."""
        return text.replace(self.key, "[key]") if self.key not in ("", NO_KEY) else text


def endpoint(name: str, environment: Mapping[str, str] = os.environ) -> Endpoint:
    """The judge that the environment describes. Raises UserError naming the variable that is missing or impossible."""
    prefix = f"WORKBENCH_JUDGE_{name}_"
    values = {part: environment.get(prefix + part, "").strip() for part in ("BASE_URL", "MODEL", "API_KEY")}
    for part in ("BASE_URL", "MODEL"):
        if not values[part]:
            raise UserError(
                f"judge {name} needs the environment variable {prefix}{part}; set it, or leave the judge out of"
                " evaluation.vlm.judges"
            )
    # Addresses get into messages of libraries: no secret may stand in one.
    try:
        parts = urlsplit(values["BASE_URL"])
        plain = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.username and not parts.query
    except ValueError:
        plain = False
    if not plain:
        raise UserError(
            f"{prefix}BASE_URL must be an http(s) address without user, password or query; a key belongs into"
            f" {prefix}API_KEY"
        )
    return Endpoint(name, values["BASE_URL"], values["MODEL"], values["API_KEY"] or NO_KEY)


class Client:
    """Asks one endpoint, from several threads at once. `stop` ends every wait.

    sleep: how a wait passes, for tests; by default it ends early when the client is stopped. has_answered: whether it
    ever did; then it is not given up, however much it refuses.
    """

    def __init__(self, where: Endpoint, settings: Vlm, sleep: Callable[[float], object] | None = None) -> None:
        try:
            import openai
        except ImportError as error:
            raise UserError(
                "vision-language judges need the openai package: pip install 'few-step-workbench[judge-vlm]'"
            ) from error
        self._errors = openai
        self.where, self.settings = where, settings
        self._stopped = threading.Event()
        # Without a lock: a count that is off by a thread's worth does no harm.
        self._num_missing, self.has_answered = 0, False
        self._sleep = sleep or self._stopped.wait
        # Retries are ours: the library knows nothing of malformed replies, nor of being interrupted.
        self._client = openai.OpenAI(
            api_key=where.key,
            base_url=where.base_url,
            timeout=settings.timeout_s,
            max_retries=0,
        )

    def stop(self) -> None:
        """End all waiting; questions not yet answered raise Stopped."""
        self._stopped.set()

    def ask(self, messages: list[Any], parse: Callable[[str], Parsed]) -> Parsed:
        """The parsed answer, asked for up to `attempts` times.

        Raises: Missing with the last reason; Stopped; UserError where the judge refuses or fails every question.
        """
        try:
            answer = self._ask(messages, parse)
        except Missing as missing:
            self._num_missing += 1
            if self._num_missing >= MAX_MISSING_AT_FIRST and not self.has_answered:
                who = f"judge {self.where.name} ({self.where.model})"
                raise UserError(f"{who} answered none of {self._num_missing} questions; the last: {missing}") from None
            raise
        self.has_answered = True
        return answer

    def _ask(self, messages: list[Any], parse: Callable[[str], Parsed]) -> Parsed:
        reason = ""
        for attempt in range(self.settings.attempts):
            if self._stopped.is_set():
                raise Stopped
            try:
                return parse(self._once(messages))
            except Malformed as error:
                reason, wait_s = f"malformed: {error}", 0.0
            except _Again as error:
                reason = str(error)
                wait_s = error.retry_after_s if error.retry_after_s is not None else _backoff_s(attempt)
            if wait_s and attempt + 1 < self.settings.attempts:
                self._sleep(wait_s)
        raise Missing(reason)

    def _once(self, messages: list[Any]) -> str:
        """Text of one reply, the key cut out. Raises _Again, Missing, Malformed, UserError."""
        errors, deadline = self._errors, time.monotonic() + self.settings.timeout_s
        try:
            with self._client.chat.completions.with_streaming_response.create(
                model=self.where.model,
                messages=messages,
                max_completion_tokens=self.settings.max_tokens,
                response_format={"type": "json_object"},
            ) as response:
                body = _whole(response.iter_bytes(), deadline, self.settings.timeout_s)
        except errors.APITimeoutError:
            raise _Again(f"no answer within {self.settings.timeout_s:g} s") from None
        except errors.APIConnectionError:
            raise _Again("connection dropped") from None
        except errors.APIStatusError as error:
            status, headers = error.status_code, error.response.headers
            reason = " ".join(self.where.redact(str(error.message)).split())[:MAX_QUOTED]
        except (errors.APIError, ValueError):
            raise Malformed("no chat completion") from None
        else:
            return self.where.redact(_text_of(body))
        if status >= 500 or status in PASSING:
            raise _Again(f"HTTP {status}", _retry_after_s(headers))
        if status in FATAL:
            raise UserError(f"judge {self.where.name} ({self.where.model}) refuses with HTTP {status}: {reason}")
        raise Missing(f"refused: HTTP {status}: {reason}")


class _Again(Exception):
    """A failure that may pass."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


def _whole(chunks: Iterable[bytes], deadline: float, seconds: float) -> bytes:
    """The body of a reply, all of it by the deadline: the library limits each read only, and a server may send slowly.

    Raises: _Again."""
    body = bytearray()
    try:
        for chunk in chunks:
            body += chunk
            if time.monotonic() > deadline:
                raise TimeoutError
    except Exception as error:  # of whichever HTTP library the client was built on
        is_late = "Timeout" in type(error).__name__
        raise _Again(f"no answer within {seconds:g} s" if is_late else "connection dropped") from None
    return bytes(body)


def _text_of(body: bytes) -> str:
    """Text of the first choice; the library does not validate what a server sends."""
    try:
        choice = json.loads(body)["choices"][0]
        message, ended = choice["message"], choice.get("finish_reason")
        text = message["content"]
        # vLLM and SGLang give thoughts apart, under the one name or the other.
        thoughts = message.get("reasoning") or message.get("reasoning_content")
        if isinstance(text, list):
            text = "".join(part["text"] for part in text if part["type"] == "text")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Malformed("no chat completion") from None
    if ended == "length":
        raise Malformed("cut short" + (" among its thoughts: raise evaluation.vlm.max_tokens" if thoughts else ""))
    if not isinstance(text, str):
        raise Malformed("thoughts without an answer" if thoughts else "no text")
    return text


def _backoff_s(attempt: int) -> float:
    """Doubling waits with jitter, so that threads turned away together do not come back together."""
    # Timing alone hangs on this draw, no result.
    return min(BACKOFF_S * 2**attempt, LONGEST_BACKOFF_S) * random.uniform(0.5, 1.0)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: a number, or a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    seconds: float | None = None
    with suppress(ValueError):
        seconds = float(value)
    if seconds is None:
        with suppress(ValueError, TypeError):
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
    return None if seconds is None or not seconds >= 0 else min(seconds, LONGEST_RETRY_AFTER_S)
