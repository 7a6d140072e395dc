"""Requests that schemathesis makes of the gateway's own /openapi.json, right and wrong ones."""

import asyncio
import base64
import contextlib
import copy
import json
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import httpx
import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis.errors import Flaky, Unsatisfiable
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, GenerationMode

from tests.fuzz.calls import CHAT, DEADLINE, Found, good_answer, problem_of
from tests.fuzz.openai import WORD
from tests.fuzz.pictures import originals
from tests.support.openapi import EVENTS, PATH, Described, events_of

KIND = "content-type"
# The description of a field that may ask for nothing.
NOTHING = "Not supported."
# This many right requests of a route, then as many wrong ones, and then the next route.
EXAMPLES = 6
# The fields that every answered body has.
ASKED = [{"role": "user", "content": "What is this?"}]
PICTURE = f"data:image/png;base64,{base64.b64encode(originals()['png RGB']).decode()}"
SHOWN = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE}}]}]
# An answer has as few tokens as may be.
MOST = {
    "max_tokens": 3,
    "max_completion_tokens": 3,
    "max_output_tokens": 3,
    "min_tokens": 1,
    "n": 2,
}
# The field that bounds the answers of a route.
SHORT = {
    CHAT: "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/messages": "max_tokens",
    "/v1/responses": "max_output_tokens",
}


async def fuzz_by_schema(
    url: str,
    seed: int,
    *,
    rounds: int | None = None,
    seconds: float | None = None,
    path: str | None = None,
) -> Found:
    """Goes through all routes, or that of `path`, `rounds` times, or for `seconds`.

    A good answer stays as it was at first.
    """
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=DEADLINE) as http:
        expected = await good_answer(http)
        described = Described((await http.get(PATH)).raise_for_status().json())
        model = (await http.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        with requests.Session() as session:
            session.trust_env = False
            caller = Caller(url, described, model, seed, session, path)
            await asyncio.to_thread(caller.call_all, rounds, seconds)
        assert await good_answer(http) == expected, "a good answer changed"
    return caller.found


@dataclass(frozen=True, slots=True)
class Sent:
    """A request to a route, as a regression file has it. Surrogates of the body are bytes."""

    method: str
    route: str
    url: str
    headers: dict[str, str]
    body: str

    @classmethod
    def read(cls, kept: bytes) -> "Sent":
        return cls(**json.loads(kept))

    @classmethod
    def of(cls, route: str, request: requests.PreparedRequest) -> "Sent":
        body = request.body or b""
        text = body if isinstance(body, str) else body.decode("utf-8", "surrogateescape")
        kind = {name: value for name, value in request.headers.items() if name.lower() == KIND}
        return cls(request.method or "", route, request.path_url, kind, text)

    def kept(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    async def problem_again(self, http: httpx.AsyncClient) -> str | None:
        """With the answer that it gets now."""
        described = Described((await http.get(PATH)).raise_for_status().json())
        body = self.body.encode("utf-8", "surrogateescape")
        response = await http.request(self.method, self.url, content=body, headers=self.headers)
        return _problem(described, self, response)


class Caller:
    def __init__(
        self,
        url: str,
        described: Described,
        model: str,
        seed: int,
        session: requests.Session,
        path: str | None,
    ) -> None:
        self.found = Found()
        self._url, self._session, self._seed = url, session, seed
        self._described, self._model = described, model
        self._words = frozenset({*_words(described.document), model})
        schema = schemathesis.openapi.from_dict(_without_what_asks_for_nothing(described.document))
        if path is not None:
            schema = schema.include(path=path)
        self._kinds = [
            each.ok().as_strategy(generation_mode=mode)
            for mode in GenerationMode
            for each in schema.get_all_operations()
        ]
        self._until = float("inf")

    def call_all(self, rounds: int | None, seconds: float | None) -> None:
        if seconds is not None:
            self._until = time.monotonic() + seconds
        number = 0
        while number != rounds and time.monotonic() < self._until:
            for cases in self._kinds:
                self._call_some(cases, self._seed * 1000 + number)
            number += 1

    def _call_some(self, cases: SearchStrategy[Case], seed: int) -> None:
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
        @given(cases)
        def call(case: Case) -> None:
            if time.monotonic() < self._until:
                problem, sent = self._problem(case)
                if problem is not None:
                    failing.append((problem, sent))
                    raise AssertionError(problem)

        # There is no wrong one of what takes nothing. Flaky: it failed once, or time was up.
        with contextlib.suppress(AssertionError, Flaky, Unsatisfiable):
            call()
        self.found.bad += failing[-1:]

    def _problem(self, case: Case) -> tuple[str | None, bytes]:
        self._answerable(case)
        route, label = case.operation.path, case.operation.label
        try:
            response = case.call(base_url=self._url, session=self._session, timeout=DEADLINE)
        except requests.RequestException as error:
            name = type(error).__name__
            self.found.endings[f"{label} {name}"] += 1
            return name, Sent.of(route, error.request).kept()
        self.found.endings[f"{label} {response.status_code}"] += 1
        sent = Sent.of(route, response.request)
        headers = {name: values[0] for name, values in response.headers.items()}
        same = httpx.Response(response.status_code, headers=headers, content=response.content)
        return _problem(self._described, sent, same), sent.kept()

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
            is_anthropic = case.operation.path.startswith("/v1/messages")
            body["messages"] = SHOWN if chance & 8 and not is_anthropic else ASKED
        if isinstance(body.get("input"), list) and chance % 8 < 6:
            body["input"] = ASKED
        if case.operation.path in SHORT:
            field = SHORT[case.operation.path]
            if body.get(field) is None:
                body[field] = MOST[field]
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


def _problem(described: Described, sent: Sent, response: httpx.Response) -> str | None:
    return (
        described.answer_problem(sent.method.lower(), sent.route, response)
        or (problem_of(response) if response.content else None)
        or _problem_of_events(described, sent.route, response)
    )


def _problem_of_events(described: Described, route: str, response: httpx.Response) -> str | None:
    if not response.headers.get(KIND, "").startswith(EVENTS):
        return None
    problems = (described.event_problem(route, event) for event in events_of(response.text))
    return next(filter(None, problems), None)


def _without_what_asks_for_nothing(document: Any) -> Any:
    """It is half of the fields, and every case would be of little else."""
    document = copy.deepcopy(document)
    for schema in document["components"]["schemas"].values():
        fields = schema.get("properties", {})
        for name in [name for name, told in fields.items() if told.get("description") == NOTHING]:
            del fields[name]
    return document


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
