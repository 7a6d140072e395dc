"""Writes docs/errors.md from the proto's reasons.

python -m tools.errors_page [--check]: with --check, fails if the page is out of date.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from pixtral_core.errors import ServingError
from pixtral_gateway.api.openai.errors import status_of
from tools.generated_page import write_or_check

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "errors.md"
PROTO = ROOT / "protos" / "pixtral" / "v1" / "chat.proto"
HEAD = """\
# Errors and their reasons

`python -m tools.errors_page` makes this page from `ErrorReason` in `protos/pixtral/v1/chat.proto`.

| an error has | over gRPC | over HTTP, in OpenAI's form |
|---|---|---|
| its kind | the status code | the status |
| its reason | `ErrorInfo` under the domain `pixtral` | `code`, in small letters |
| the path of each wrong field | `BadRequest` | `param` |
| the time to retry after, if a retry can succeed | `RetryInfo` | `Retry-After` |
"""
TABLE = "\n| reason | status code | HTTP | cause | remedy |\n|---|---|---|---|---|\n"
CLIENTS = "\n## Errors of requests\n"
TIERS = """
## Errors between tiers

The gateway gets these errors and tries again. If that fails, the client gets `UNAVAILABLE`.
"""

_REASON = re.compile(
    r"(?P<comment>(?:  //[^\n]*\n)+)  ERROR_REASON_(?P<name>\w+) = \d+;", re.MULTILINE
)
_BETWEEN = ", between tiers"


@dataclass(frozen=True, slots=True)
class Reason:
    name: str
    code: str
    is_between_tiers: bool
    cause: str
    remedy: str

    def row(self) -> str:
        code = getattr(grpc.StatusCode, self.code, None)
        http = status_of(ServingError(code, self.name, self.cause)) if code else "any"
        named = f"`{self.code}`" if code else "any"
        return f"| `{self.name}` | {named} | {http} | {self.cause} | {self.remedy} |\n"


def reasons() -> Iterator[Reason]:
    """The reasons in the proto's order. Each one's comment has its code, cause and remedy."""
    text = PROTO.read_text("utf-8")
    for found in _REASON.finditer(text[text.index("enum ErrorReason") :]):
        comment = " ".join(line.strip(" /") for line in found["comment"].splitlines())
        code, cause, remedy = re.split(r"(?<=\.) (?=[A-Z])", comment, maxsplit=2)
        code = code.rstrip(".")
        yield Reason(
            found["name"],
            code.removesuffix(_BETWEEN).split()[0],
            code.endswith(_BETWEEN),
            cause,
            remedy,
        )


def page() -> str:
    clients = [each.row() for each in reasons() if not each.is_between_tiers]
    tiers = [each.row() for each in reasons() if each.is_between_tiers]
    return "".join([HEAD, CLIENTS, TABLE, *clients, TIERS, TABLE, *tiers])


def main(arguments: list[str]) -> int:
    return write_or_check(PAGE, page(), "tools.errors_page", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
