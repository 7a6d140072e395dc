"""Writes docs/python.md from the SDK's docstrings.

python -m tools.python_page [--check]: with --check, fails if the page is out of date.
"""

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any, is_typeddict

import pixtral_client
from tools.generated_page import write_or_check

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"
HEAD = '''\
# The Python SDK

`pixtral_client` sends requests to a gateway over gRPC. It needs grpcio and protobuf, and pydantic
only for `response_model` and for some types of a tool's parameters. `python -m tools.python_page`
writes the reference below from the docstrings.

```python
from pathlib import Path

from pixtral_client import Client

with Client("127.0.0.1:50051") as client:
    question = [Path("docs/demo/street.png"), "What word is printed?"]
    print(client.chat([{"role": "user", "content": question}]).text)
```

## Messages

%(messages)s

## Retries

%(retries)s

## Many images

`map` answers thousands of conversations with a bounded number at once. It keeps the order of the
input, continues when one fails, and slows down when the gateway refuses:

```python
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixtral_client import Client


def about(paths: list[Path]) -> Iterator[list[dict[str, Any]]]:
    for path in paths:
        yield [{"role": "user", "content": [path, "What word is printed?"]}]


paths = sorted(Path("docs/demo").glob("*.png"))
with Client() as client:
    for outcome in client.map(about(paths), concurrency=32, progress=True, max_tokens=50):
        if outcome.completion is not None:
            print(paths[outcome.index], outcome.completion.text)
        else:
            print(paths[outcome.index], "failed:", outcome.error)
```

Without a running gateway, `pixtral_cli.local` starts a stack on this machine for the time of the
block, as vLLM's `LLM.chat([...])` starts an engine:

```python
import pixtral_cli

conversations = [[{"role": "user", "content": f"What is {n} and {n}?"}] for n in range(100)]
with pixtral_cli.local("models/pixtral-mini") as client:
    answers = [outcome.unwrap().text for outcome in client.map(conversations, progress=True)]
```

## Answers of a type

With a pydantic model as `response_model`, the answer fits the model's JSON schema, and the client
reads it:

```python
from pathlib import Path

from pydantic import BaseModel

from pixtral_client import Client


class Street(BaseModel):
    word: str
    shapes: int


with Client() as client:
    question = [Path("docs/demo/street.png"), "Which word is printed? How many shapes are there?"]
    answer = client.chat([{"role": "user", "content": question}], response_model=Street)
    print(answer.parsed.word, answer.parsed.shapes)
```

## Functions as tools

%(functions)s

```python
from typing import Literal

from pixtral_client import Client, ToolError


def weather(town: str, unit: Literal["C", "F"] = "C") -> str:
    """Says what the weather is like.

    Args:
        town: its name, without the country.
        unit: of the temperature.
    """
    if town != "Paris":
        raise ToolError("only Paris is known")
    return f"21 {unit}, sunny"


with Client() as client:
    run = client.run_tools(
        [{"role": "user", "content": "What is the weather like in Paris?"}], [weather]
    )
    print(run.text, len(run.messages))
```

## Reference

'''
# The first names, in the order that readers want; the others follow by name.
FIRST = ("Client", "AsyncClient", "Options", "Sampling", "StructuredOutput", "Completion")


def page() -> str:
    names = [name for name in pixtral_client.__all__ if not name.startswith("_")]
    ordered = [*FIRST, *sorted(name for name in names if name not in FIRST)]
    head = HEAD % {
        "messages": _modules_text("messages"),
        "retries": _modules_text("retries"),
        "functions": _modules_text("functions"),
    }
    return head + "\n".join(_entry(name, getattr(pixtral_client, name)) for name in ordered)


def undocumented() -> list[str]:
    """Public names without a docstring of their own."""
    missing = []
    for name in pixtral_client.__all__:
        value = getattr(pixtral_client, name)
        if not inspect.isclass(value):
            continue
        if not _own_text(value):
            missing.append(name)
        missing += [f"{name}.{method}" for method, found in _methods(value) if not found.__doc__]
    return missing


def _modules_text(name: str) -> str:
    """A module's docstring without its first line."""
    module = sys.modules[f"pixtral_client.{name}"]
    return _markdown(inspect.cleandoc(module.__doc__ or "").partition("\n\n")[2])


def _own_text(cls: type) -> str:
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    # Python generates a docstring like this for a dataclass.
    return "" if text.startswith(f"{cls.__name__}(") else text


def _entry(name: str, cls: type) -> str:
    parts = [f"### {name}\n", f"{_markdown(_own_text(cls))}\n"]
    if signature := _fields(cls) or _constructor(cls):
        parts.insert(1, f"```text\n{signature}\n```\n")
    for method, function in _methods(cls):
        is_async = inspect.iscoroutinefunction(function)
        shown = f"{'await ' if is_async else ''}{method}{_signature(function)}"
        if isinstance(function, property):
            shown = method
        parts.append(f"#### {name}.{method}\n\n```text\n{shown}\n```\n")
        parts.append(f"{_markdown(inspect.cleandoc(function.__doc__ or ''))}\n")
    return "\n".join(parts)


def _methods(cls: type) -> list[tuple[str, Any]]:
    return [
        (name, value)
        for name, value in vars(cls).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    ]


def _fields(cls: Any) -> str:
    if is_typeddict(cls):
        return "\n".join(f"{name}: {_type(kind)}" for name, kind in cls.__annotations__.items())
    if not dataclasses.is_dataclass(cls):
        return ""
    kind: type = cls if isinstance(cls, type) else type(cls)
    own = inspect.get_annotations(kind)
    return "\n".join(
        f"{each.name}: {_type(each.type)}" for each in dataclasses.fields(cls) if each.name in own
    )


def _constructor(cls: type) -> str:
    if "__init__" not in vars(cls) or not cls.__name__.endswith("Client"):
        return ""
    return f"{cls.__name__}{_signature(vars(cls)['__init__'])}"


def _signature(function: Any) -> str:
    if isinstance(function, property):
        return ""
    signature = inspect.signature(function)
    shown = [each for each in signature.parameters.values() if each.name != "self"]
    return _short(str(signature.replace(parameters=shown)))


def _type(kind: Any) -> str:
    return _short(inspect.formatannotation(kind) if not isinstance(kind, str) else kind)


def _short(text: str) -> str:
    """Removes the modules from names."""
    text = re.sub(r"<class '([^']+)'>", r"\1", text)
    text = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z~+-])", "", text).replace("~", "").replace("'", "")
    # Python 3.12 writes it this way.
    return text.replace("**options: *Options", "**options: Unpack[Options]")


def _markdown(text: str) -> str:
    """A docstring as Markdown, in which `Args:` and similar sections become lists."""
    lines: list[str] = []
    is_list = False
    for line in text.splitlines():
        if re.fullmatch(r"(Args|Raises|Attributes):", line):
            is_list = True
            lines += [f"{line}", ""]
        elif is_list and (item := re.match(r"    ([\w, *]+): (.*)", line)):
            lines.append(f"- `{item[1]}`: {item[2]}")
        elif is_list and line.startswith("        "):
            lines.append(f"  {line.strip()}")
        else:
            is_list = is_list and line.startswith("    ")
            lines.append(line)
    return "\n".join(lines).strip()


def main(arguments: list[str]) -> int:
    return write_or_check(PAGE, page(), "tools.python_page", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
