"""Requests that schemathesis makes of the gateway's own /openapi.json, right and wrong ones."""

import asyncio
import contextlib
import json
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode

from tests.fuzz.calls import CHAT, DEADLINE, Found, good_answer, problem_of
from tests.fuzz.openai import WORD, Bodies
from tests.openapi import CHUNK, ERROR, EVENTS, PATH, Described

CHECKS = (
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "status_code_conformance",
)
# So many of a route's right ones, then of its wrong ones, and then those of the next.
EXAMPLES = 25
# An answer has as few tokens as may be.
MOST = {"max_tokens": 3, "max_completion_tokens": 3, "min_tokens": 1, "n": 2}


async def fuzz_by_schema(
    url: str, seed: int, *, rounds: int | None = None, seconds: float | None = None
) -> Found:
    """Through all routes so many times, or for so long. A good answer stays as it was at first."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=DEADLINE) as http:
        expected = await good_answer(http)
        described = Described((await http.get(PATH)).raise_for_status().json())
        model = (await http.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        with requests.Session() as session:
            session.trust_env = False
            caller = Caller(url, described, model, seed, session)
            await asyncio.to_thread(caller.call_all, rounds, seconds)
        assert await good_answer(http) == expected, "a good answer changed"
    return caller.found


@dataclass(frozen=True, slots=True)
class Request:
    """As a regression file has it."""

    method: str
    path: str
    headers: dict[str, str]
    body: str

    @classmethod
    def read(cls, kept: bytes) -> "Request":
        return cls(**json.loads(kept))

    @classmethod
    def of(cls, sent: requests.PreparedRequest) -> "Request":
        body = sent.body or b""
        text = body if isinstance(body, str) else body.decode("utf-8", "surrogateescape")
        kind = {name: sent.headers[name] for name in ("content-type",) if name in sent.headers}
        return cls(sent.method or "", sent.path_url, kind, text)

    def kept(self) -> bytes:
        values = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(values, indent=1).encode()


class Caller:
    def __init__(
        self, url: str, described: Described, model: str, seed: int, session: requests.Session
    ) -> None:
        self.found = Found()
        self._url, self._session, self._seed = url, session, seed
        self._described, self._model = described, model
        talks = Bodies(seed)
        self._talks = [talks.good()["messages"] for _ in range(8)]
        self._words = frozenset({*_words(described.document), model})
        checks: dict[str, Any] = {name: {"enabled": True} for name in CHECKS}
        settings = schemathesis.Config.from_dict({"checks": {"enabled": False} | checks})
        self._schema = schemathesis.openapi.from_dict(described.document, config=settings)
        self._until = float("inf")

    def call_all(self, rounds: int | None, seconds: float | None) -> None:
        if seconds is not None:
            self._until = time.monotonic() + seconds
        number = 0
        while number != rounds and time.monotonic() < self._until:
            for result in self._schema.get_all_operations():
                for mode in GenerationMode:
                    self._call_some(result.ok(), mode, self._seed * 1000 + number)
            number += 1

    def _call_some(self, operation: Any, mode: GenerationMode, seed: int) -> None:
        """Ends with the first that fails, made as small as it may be."""
        failing: list[tuple[str, bytes]] = []

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=EXAMPLES,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode))
        def call(case: Case) -> None:
            if time.monotonic() < self._until:
                problem, sent = self._problem(case)
                if problem is not None:
                    failing.append((problem, sent))
                    raise AssertionError(problem)

        # There is no wrong one of what takes nothing.
        with contextlib.suppress(AssertionError, Unsatisfiable):
            call()
        self.found.bad += failing[-1:]

    def _problem(self, case: Case) -> tuple[str | None, bytes]:
        self._answerable(case)
        try:
            response = case.call(base_url=self._url, session=self._session, timeout=DEADLINE)
        except requests.RequestException as error:
            return type(error).__name__, Request.of(error.request).kept()
        self.found.endings[f"{case.operation.label} {response.status_code}"] += 1
        return self._problem_of(case, response), Request.of(response.request).kept()

    def _problem_of(self, case: Case, response: schemathesis.Response) -> str | None:
        try:
            case.validate_response(response)
        except BaseExceptionGroup as failed:
            return "; ".join(f"{each}" for each in failed.exceptions)
        if response.status_code == 200 and not response.content:
            return None
        headers = {name: values[0] for name, values in response.headers.items()}
        same = httpx.Response(response.status_code, headers=headers, content=response.content)
        return problem_of(same) or self._problem_of_events(same)

    def _problem_of_events(self, response: httpx.Response) -> str | None:
        if not response.headers["content-type"].startswith(EVENTS):
            return None
        data = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        problems = (
            self._described.problem(ERROR if "error" in event else CHUNK, event)
            for event in map(json.loads, data[:-1])
        )
        return next(filter(None, problems), None)

    def _answerable(self, case: Case) -> None:
        """The same with WORD in all that is the client's own, and of what is right often made one
        that is answered, and soon."""
        chance = zlib.crc32(repr((case.path_parameters, case.body)).encode("utf-8", "replace"))
        names = case.path_parameters or {}
        if isinstance(names.get("model"), str):
            names["model"] = self._model if chance % 2 else names["model"] + WORD
        if not isinstance(case.body, dict):
            return
        body = self._marked(case.body)
        if isinstance(body.get("model"), str) and chance % 4:
            body["model"] = self._model
        if isinstance(body.get("messages"), list) and chance % 8 < 6:
            body["messages"] = self._talks[chance // 8 % len(self._talks)]
        if case.operation.path == CHAT:
            if body.get("max_tokens") is None:
                body["max_tokens"] = MOST["max_tokens"]
            for name, most in MOST.items():
                if type(body.get(name)) is int and most < body[name] < 1 << 32:
                    body[name] = most
        case.body = body

    def _marked(self, value: Any) -> Any:
        match value:
            case dict():
                return {self._marked(name): self._marked(each) for name, each in value.items()}
            case list():
                return [self._marked(each) for each in value]
            case str() if value not in self._words and not value.isdigit():
                return value + WORD
            case _:
                return value


def _words(value: Any) -> Iterator[str]:
    """Names and values that a document says may be sent."""
    match value:
        case list():
            for each in value:
                yield from _words(each)
        case dict():
            yield from value.get("properties", ())
            yield from (each for each in value.get("enum", ()) if isinstance(each, str))
            yield from (each for each in (value.get("const"),) if isinstance(each, str))
            for each in value.values():
                yield from _words(each)
