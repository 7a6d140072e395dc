"""What a gateway's /openapi.json says, for tests to hold it to."""

from functools import cache
from typing import Any

import httpx
import httpx2
import jsonschema

PATH = "/openapi.json"
JSON = "application/json"
EVENTS = "text/event-stream"
CHUNK, ERROR = "ChatCompletionChunk", "ErrorAnswer"


class Described:
    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._validator = cache(self._made)

    def body_problem(self, path: str, body: Any) -> str | None:
        """What is wrong with a body that is sent there."""
        content = self.document["paths"][path]["post"]["requestBody"]["content"]
        return self._problem(content[JSON]["schema"]["$ref"], body)

    def answer_problem(
        self, method: str, path: str, response: httpx.Response | httpx2.Response
    ) -> str | None:
        """What is wrong with an answer, but for the events of a stream. It has been read."""
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
            return self._problem(content[kind]["schema"]["$ref"], response.json())
        return None

    def problem(self, name: str, value: Any) -> str | None:
        """What is wrong with a value that is to be of that schema."""
        return self._problem(f"#/components/schemas/{name}", value)

    def _problem(self, ref: str, value: Any) -> str | None:
        error = jsonschema.exceptions.best_match(self._validator(ref).iter_errors(value))
        return None if error is None else f"{error.json_path}: {error.message}"

    def _made(self, ref: str) -> Any:
        schema = {"$ref": ref, "components": self.document["components"]}
        return jsonschema.Draft202012Validator(schema)
