"""A judge on loopback that speaks just enough of the chat completions API, and misbehaves as told."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from workbench.evaluation.judges.vlm_prompts import EDITS, GENERAL_EDIT, T2I, system_prompt

KEY = "sk-secret-0123456789"
RUBRICS = {system_prompt(rubric): rubric for rubric in (T2I, *EDITS.values(), GENERAL_EDIT)}


def true_score(text: str) -> float:
    """The score that the server gives a prompt that ends in a number, say 'Prompt: p37'."""
    return 2.0 + int(re.findall(r"\d+", text)[-1]) % 300 / 100


def good_reply(body: dict[str, Any]) -> str:
    """A valid reply to any question; in a comparison the first picture wins."""
    system, text = body["messages"][0]["content"], body["messages"][1]["content"][0]["text"]
    if system not in RUBRICS:
        return json.dumps({"winner": "A", "reason": "First."})
    scores = dict.fromkeys(RUBRICS[system].axes, 4.5)
    # A gateway may put the key into what it hands back.
    reply = {"sub_scores": scores, "failure_modes": [], "reason": f"Fine, {KEY}.", "score": true_score(text)}
    return json.dumps(reply)


@dataclass
class Log:
    """Every question that arrived: its text, and how often."""

    texts: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=dict)
    at_once: int = 0
    most_at_once: int = 0


Behaviour = Callable[[str, int], str]
"""(text of the question, how often it came before) -> what to do."""


def _handler(behaviour: Behaviour, log: Log, lock: threading.Lock) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][1]["content"][0]["text"]
            with lock:
                before = log.texts.count(text)
                log.texts.append(text)
                log.headers.append(self.headers.get("Authorization", ""))
                log.times.setdefault(text, []).append(time.monotonic())
                log.at_once += 1
                log.most_at_once = max(log.most_at_once, log.at_once)
            try:
                self._answer(behaviour(text, before), good_reply(body))
            finally:
                with lock:
                    log.at_once -= 1

        def _answer(self, what: str, reply: str) -> None:
            score = '"score": '
            match what:
                case "good":
                    self._send(200, completion(reply))
                case "fenced":
                    self._send(200, completion(f"```json\n{reply}\n```"))
                case "slow":
                    time.sleep(0.2)
                    self._send(200, completion(reply))
                case "hang":
                    time.sleep(1.5)
                    self._send(200, completion(reply))
                case "drip":
                    content = completion(reply)
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    with suppress(OSError):
                        for byte in content:
                            self.wfile.write(bytes([byte]))
                            time.sleep(0.05)
                case "429":
                    self._send(429, echo(self.headers["Authorization"]), {"Retry-After": "0.3"})
                case "500" | "503" | "400" | "401":
                    self._send(int(what), echo(self.headers["Authorization"]))
                case "garbage":
                    self._send(200, b"<html>not today</html>", {"Content-Type": "text/html"})
                case "garbage json":
                    self._send(200, b"{not json")
                case "no choices":
                    self._send(200, b'{"choices": null}')
                case "prose":
                    self._send(200, completion("I would give it a 4."))
                case "truncated":
                    self._send(200, completion(reply[: len(reply) // 2]))
                case "cut short":
                    self._send(200, completion(reply, "length"))
                case "nothing":
                    self._send(200, completion(None))
                case "too high":
                    self._send(200, completion(re.sub(r'"score": [\d.]+', f"{score}5.01", reply)))
                case "too low":
                    self._send(200, completion(re.sub(r'"score": [\d.]+', f"{score}0", reply)))
                case "nan":
                    self._send(200, completion(re.sub(r'"score": [\d.]+', f"{score}NaN", reply)))
                case "words":
                    self._send(200, completion(re.sub(r'"score": [\d.]+', f'{score}"4.0"', reply)))
                case "drop":
                    self.close_connection = True
                    self.connection.close()
                case "drop midway":
                    self.send_response(200)
                    self.send_header("Content-Length", "5000")
                    self.end_headers()
                    self.wfile.write(b'{"choices": [')
                    self.close_connection = True
                case _:
                    raise AssertionError(what)

        def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: Any) -> None:
        """Clients that hang up are part of the play."""


@contextmanager
def judge_server(behaviour: Behaviour) -> Iterator[tuple[str, Log]]:
    """Base URL and log of a server that does as told while the block lasts."""
    log = Log()
    server = _Server(("127.0.0.1", 0), _handler(behaviour, log, threading.Lock()))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", log
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(text: str | None, ended: str = "stop") -> bytes:
    """A chat completion with one choice."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": ended}
    return json.dumps(
        {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    ).encode()


def echo(authorization: str) -> bytes:
    """An error that repeats the key, as careless gateways do."""
    return json.dumps({"error": {"message": f"bad request with {authorization}", "code": authorization}}).encode()
