"""Checks requests and answers against a gateway's /openapi.json."""

import json
from functools import cache
from typing import Any

import httpx
import httpx2
import jsonschema

PATH = "/openapi.json"
JSON = "application/json"
EVENTS = "text/event-stream"


class Described:
    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._validator = cache(self._made)

    def body_problem(self, path: str, body: Any) -> str | None:
        """The fault of a request body for this path; None if it has none."""
        content = self.document["paths"][path]["post"]["requestBody"]["content"]
        return self._problem(content[JSON]["schema"], body)

    def answer_problem(
        self, method: str, path: str, response: httpx.Response | httpx2.Response
    ) -> str | None:
        """The fault of an answer that has been read, without the events of a stream."""
        told = self.document["paths"][path][method]["responses"].get(str(response.status_code))
        if told is None:
            return f"{response.status_code} is not among the statuses"
        for name, header in told.get("headers", {}).items():
            if header["required"] and name not in response.headers:
                return f"{response.status_code} without {name}"
        content = told.get("content", {})
        kind = response.headers.get("content-type", "").partition(";")[0]
        if kind not in content:
            return f"{kind} is not among the content types" if content or kind else None
        if kind == JSON:
            return self._problem(content[kind]["schema"], response.json())
        return None

    def problem(self, name: str, value: Any) -> str | None:
        """The fault of a value of the schema `name`."""
        return self._problem({"$ref": f"#/components/schemas/{name}"}, value)

    def event_problem(self, path: str, event: Any) -> str | None:
        """The fault of the data of an event from the stream of this path."""
        content = self.document["paths"][path]["post"]["responses"]["200"]["content"]
        return self._problem(content[EVENTS]["schema"]["contentSchema"], event)

    def _problem(self, schema: dict[str, Any], value: Any) -> str | None:
        validator = self._validator(json.dumps(schema))
        error = jsonschema.exceptions.best_match(validator.iter_errors(value))
        return None if error is None else f"{error.json_path}: {error.message}"

    def _made(self, schema: str) -> Any:
        whole = {**json.loads(schema), "components": self.document["components"]}
        return jsonschema.Draft202012Validator(whole)


def events_of(text: str) -> list[dict[str, Any]]:
    """The data of each event of a stream, without OpenAI's [DONE]."""
    lines = (line for line in text.split("\n") if line.startswith("data: "))
    data = (line.removeprefix("data: ") for line in lines)
    return [json.loads(each) for each in data if each != "[DONE]"]
