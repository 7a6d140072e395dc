"""Random structured outputs over all of Unicode, and whether what may be answered is what they ask.

    python -m tests.decoder.structures --answers 10000 --seed 7

There is no engine: random tokens of the real tokenizer, among those that vLLM's backend allows,
make the answers, of structures that go the way of a request's: the gateway makes them of tools and
response formats, the decoder checks them, and the backend compiles them with the decoder's hooks.
An answer is then read as the gateway reads it. Prints what was done; ends with 1 where an answer is
not what its structure asks for.
"""

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np

from models.random_checkpoint import RandomSpec, write_random_checkpoint
from pixtral_core.errors import InvalidRequest
from pixtral_core.generation.sampling import Sampling, Structure, StructuredOutput
from pixtral_core.model.checkpoint import read_spec
from pixtral_core.model.sentencepiece import piece_bytes
from pixtral_gateway.checks.conversation import Tool, Tools
from pixtral_gateway.checks.structured_output import check_structured_output
from pixtral_gateway.prompt.prompt_encoder import PromptEncoder
from pixtral_gateway.prompt.tool_format import ToolFormat
from pixtral_gateway.request import Delta, FinishReason
from tests.support.tekken_version import set_version

with warnings.catch_warnings():
    # vLLM's own, at import.
    warnings.simplefilter("ignore")
    from vllm.tokenizers.mistral import MistralTokenizer
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend
    from vllm.v1.structured_output.request import get_structured_output_key

    from pixtral_decoder.engine.sampling_params import vllm_sampling
    from pixtral_decoder.grammar.grammar_check import NotTaken, StructureCheck
    from pixtral_decoder.vllm_hooks.grammar_vocabulary import (
        compile_json_apart,
        pieces,
        sentencepieces,
        spell_in_bytes,
    )
    from pixtral_decoder.vllm_hooks.one_line_json import compile_marked

CONFIG: Any = SimpleNamespace(
    structured_outputs_config=SimpleNamespace(disable_any_whitespace=False),
    model_config=None,
    speculative_config=None,
)
MOST_TOKENS = 600
SMALL = RandomSpec(dim=8, n_layers=1, n_heads=1, n_kv_heads=1, vision_layers=1)
# From here on an answer comes to its end where it may.
LONG = 60
END = 2
PLAIN = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _-.,:;!?()[]{}<>#$%&'+=@~^|`"
)
ODD = ('"', "\\", "/", "\t", "\n", "\r", "\0", "\x01", "\x1f", "\x7f", "\x80", "\xff")
JOINED = (
    "\u200d",
    "\u0301",
    "\u202e",
    "\u2028",
    "\ufeff",
    "\ufffe",
    "\uffff",
    "\U0010ffff",
    "👩‍🚀",
)
HEXADECIMAL = "0123456789abcdefABCDEF"


def character(rng: random.Random) -> str:
    while True:
        code = rng.choice((rng.randrange(0x300), rng.randrange(0x10000), rng.randrange(0x110000)))
        if not 0xD800 <= code < 0xE000:
            return chr(code)


def text(rng: random.Random, most: int = 8) -> str:
    """As short as it may be, too."""

    def piece() -> str:
        match rng.randrange(6):
            case 0:
                return rng.choice(ODD)
            case 1:
                return rng.choice(JOINED)
            case 2:
                # A character that a printed grammar spells by its code and reads with what follows.
                return chr(rng.randrange(0x80, 0x100)) + rng.choice(HEXADECIMAL)
            case 3:
                return character(rng)
            case _:
                return rng.choice(PLAIN)

    return "".join(piece() for _ in range(rng.randrange(most + 1)))


def letters(rng: random.Random, most: int = 6) -> str:
    """Without control characters, which an expression's dialects differ about."""
    return "".join(each for each in text(rng, most) if each.isprintable()) or "ß"


def escaped(literal: str) -> str:
    return re.sub(r"[\\.^$|?*+()\[\]{}/-]", lambda found: "\\" + found[0], literal)


def expression(rng: random.Random) -> str:
    """One that JSON Schema's dialect and Python's read alike, without anchors."""

    def piece() -> str:
        match rng.randrange(5):
            case 0:
                first, last = sorted(letters(rng, 1)[0] for _ in range(2))
                made = f"[{escaped(first)}-{escaped(last)}]"
            case 1:
                made = "[" + escaped("".join(sorted(set(letters(rng, 4))))) + "]"
            case 2:
                made = f"({escaped(letters(rng, 3))}|{escaped(letters(rng, 3))})"
            case _:
                return escaped(letters(rng, 3))
        least = rng.randrange(3)
        return made + rng.choice(("", "?", f"{{{least},{least + rng.randrange(1, 3)}}}"))

    return "".join(piece() for _ in range(rng.randrange(1, 4)))


def scalar(rng: random.Random) -> Any:
    return rng.choice((text(rng), text(rng), rng.randrange(-1000, 1000), True, False, None))


def schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    kind = rng.randrange(8 if depth else 5)
    match kind:
        case 0:
            return {"const": scalar(rng)}
        case 1:
            return {
                "enum": list({json.dumps(each): each for each in map(scalar, [rng] * 4)}.values())
            }
        case 2:
            least = rng.randrange(4)
            return {"type": "string", "minLength": least, "maxLength": least + rng.randrange(4)}
        case 3:
            return {"type": "string", "pattern": f"^{expression(rng)}$"}
        case 4:
            low = rng.randrange(-1000, 1000)
            bounded = {"type": "integer", "minimum": low, "maximum": low + rng.randrange(1000)}
            return rng.choice((bounded, {"type": "boolean"}, {"type": "null"}))
        case 5:
            least = rng.randrange(2)
            items = schema(rng, depth - 1)
            most = least + rng.randrange(1, 3)
            return {"type": "array", "items": items, "minItems": least, "maxItems": most}
        case 6:
            return {"anyOf": [schema(rng, depth - 1), schema(rng, depth - 1)]}
        case _:
            return an_object(rng, depth)


def an_object(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    properties = {text(rng): schema(rng, depth - 1) for _ in range(rng.randrange(1, 4))}
    required = [name for name in properties if rng.random() < 0.7]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def with_definitions(rng: random.Random) -> dict[str, Any]:
    name = letters(rng)
    pointed = name.replace("~", "~0").replace("/", "~1")
    plain = not re.search(r"[%~/]", name)
    return {
        "type": "object",
        "properties": {text(rng): {"$ref": f"#/$defs/{pointed if plain else 'plain'}"}},
        "$defs": {name if plain else "plain": schema(rng, 1)},
        "additionalProperties": False,
        "required": [],
    }


@dataclass(frozen=True, slots=True)
class Asked:
    """The structure of a request, and the fault of an answer's text; None if there is none."""

    form: str
    sampling: Sampling
    wrong: Callable[[str], str | None]


class Forms:
    """Makes requests as the gateway does, of tokenizers of several forms of calls."""

    def __init__(self, formats: dict[str, ToolFormat]) -> None:
        self._formats = formats

    def any(self, rng: random.Random) -> Asked:
        make = rng.choice(
            (self.called, self.called, self.called, formatted, formatted, lark, plain_text)
        )
        return make(rng)

    def called(self, rng: random.Random) -> Asked:
        version, tool_format = rng.choice(list(self._formats.items()))
        count = rng.choice((1, 1, 2, 3))
        offered = tuple(
            Tool(f"tool-{i}_{rng.choice(PLAIN[:26])}", "", parameters(rng)) for i in range(count)
        )
        is_named = rng.random() < 0.5
        forced = offered[:1] if is_named else offered
        tools = Tools(offered, forced, is_single=is_named or rng.random() < 0.5)
        by_name = {tool.name: tool.parameters or {"maxProperties": 0} for tool in forced}

        def wrong(answer: str) -> str | None:
            reader, calls = tool_format.reader(tools), list[list[str]]()
            for piece, is_last in cut(rng, answer):
                finish = FinishReason.STOP if is_last else None
                delta = reader.read(Delta(0, piece, (), finish))
                if delta.text:
                    return "text beside the calls"
                for call in delta.tool_calls:
                    if call.id:
                        calls.append([call.name, ""])
                    calls[call.index][1] += call.arguments
            if not calls or (tools.is_single and len(calls) > 1):
                return f"{len(calls)} calls"
            for name, arguments in calls:
                if name not in by_name:
                    return "another tool"
                if problem := invalid(by_name[name], arguments):
                    return problem
            return None

        name = f"{version} {'named' if is_named else 'required'}"
        return Asked(name, tool_format.constrain(tools, Sampling()), wrong)


def parameters(rng: random.Random) -> dict[str, Any]:
    return rng.choice((an_object, an_object, with_definitions, lambda _: {}))(rng)


def cut(rng: random.Random, answer: str) -> Iterator[tuple[str, bool]]:
    at = 0
    while len(answer) - at > 3:
        length = rng.randrange(1, 12)
        yield answer[at : at + length], False
        at += length
    yield answer[at:], True


def invalid(wanted: Any, answer: str) -> str | None:
    try:
        parsed = json.loads(answer)
    except ValueError as error:
        return f"no JSON: {error}"
    problems = jsonschema.Draft202012Validator(wanted).iter_errors(parsed)
    worst = jsonschema.exceptions.best_match(problems)
    return None if worst is None else str(worst.message)


def formatted(rng: random.Random) -> Asked:
    wanted = rng.choice((schema, an_object, with_definitions))(rng)
    told = json.dumps(wanted, ensure_ascii=rng.random() < 0.5)
    one_line = rng.random() < 0.5
    output = StructuredOutput(Structure.JSON_SCHEMA, (told,), one_line)
    name = "schema on one line" if one_line else "schema"
    return Asked(name, Sampling(structured_output=output), lambda answer: invalid(wanted, answer))


def lark(rng: random.Random) -> Asked:
    wanted = schema(rng)
    told = f"start: %json {json.dumps(wanted, ensure_ascii=rng.random() < 0.5)}"
    output = StructuredOutput(Structure.GRAMMAR, (told,))
    return Asked("lark", Sampling(structured_output=output), lambda answer: invalid(wanted, answer))


def plain_text(rng: random.Random) -> Asked:
    """Choices, an expression, or a grammar of literals."""
    choices = tuple({letters(rng, 10) for _ in range(rng.randrange(1, 5))})
    pattern = expression(rng)
    spelled = [json.dumps(each, ensure_ascii=False) for each in choices]
    form, values = rng.choice(
        (
            (Structure.CHOICE, choices),
            (Structure.REGEX, (pattern,)),
            (Structure.GRAMMAR, (f"root ::= {' | '.join(spelled)}",)),
            (Structure.GRAMMAR, (f"start: {' | '.join(spelled)}",)),
        )
    )

    def wrong(answer: str) -> str | None:
        if form is Structure.REGEX:
            return None if re.fullmatch(pattern, answer) else "no match"
        return None if answer in choices else "no choice"

    output = StructuredOutput(form, values)
    return Asked(form.value, Sampling(structured_output=output), wrong)


class Backend:
    """vLLM's, as it is in a decoder's engine."""

    def __init__(self, model_dir: Path) -> None:
        spell_in_bytes()
        compile_marked()
        compile_json_apart()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer: Any = MistralTokenizer.from_pretrained(str(model_dir))
            self._backend = XgrammarBackend(
                vllm_config=CONFIG, tokenizer=tokenizer, vocab_size=tokenizer.vocab_size
            )
        self._pieces = _pieces(tokenizer)
        self._bitmask = self._backend.allocate_token_bitmask(1)
        closing = [any(each in piece for each in b'"]}') for piece in self._pieces]
        self._closing = np.array(closing)
        self._space = np.array([bool(piece) and not piece.strip() for piece in self._pieces])

    def answers(self, rng: random.Random, sampling: Sampling, count: int) -> Iterator[bytes | None]:
        """The text of random allowed tokens; None if it does not end."""
        wanted = vllm_sampling(sampling, {})
        asyncio.run(StructureCheck().check(wanted))
        if wanted.structured_outputs is None:
            raise NotTaken
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            grammar: Any = self._backend.compile_grammar(
                *get_structured_output_key(wanted.structured_outputs)
            )
        for _ in range(count):
            grammar.matcher.reset()
            grammar._is_terminated = False
            yield self._walk(rng, grammar)

    def _walk(self, rng: random.Random, grammar: Any) -> bytes | None:
        made = bytearray()
        for step in range(MOST_TOKENS):
            grammar.fill_bitmask(self._bitmask, 0)
            bits = np.unpackbits(self._bitmask[0].numpy().view(np.uint8), bitorder="little")
            allowed = np.flatnonzero(bits[: len(self._pieces)])
            if not len(allowed):
                return bytes(made) + b"<nothing may follow>"
            token = self._chosen(rng, allowed, step)
            if not grammar.accept_tokens("", [token]):
                return bytes(made) + b"<not accepted>"
            if grammar.is_terminated():
                return bytes(made)
            made += self._pieces[token]
        return None

    def _chosen(self, rng: random.Random, allowed: Any, step: int) -> int:
        if allowed[-1] == END or (END in allowed[:3] and (step > LONG or rng.random() < 0.5)):
            return END
        allowed = allowed[allowed != END]
        for worth in (~self._space, *([self._closing] if step > LONG else [])):
            better = allowed[worth[allowed]]
            if len(better) and rng.random() < 0.95:
                allowed = better
        return int(allowed[rng.randrange(len(allowed))])


def _pieces(tokenizer: Any) -> list[bytes]:
    if tokenizer.is_tekken:
        return pieces(tokenizer.tokenizer, len(tokenizer.vocab))
    return [piece_bytes(each) for each in sentencepieces(tokenizer.tokenizer, tokenizer.vocab)]


@dataclass(slots=True)
class Found:
    """The results of a run: answers by form, structures that were refused, and what was wrong."""

    answers: Counter[str]
    unfinished: int
    refused: int
    structures: int
    wrong: list[str]


def run(model_dirs: Mapping[str, Path], *, answers: int, seed: int, each: int = 5) -> Found:
    """The directories are of tokenizers with one vocabulary, by the names of their forms of
    calls."""
    rng = random.Random(seed)
    formats = {
        name: PromptEncoder.load(path, read_spec(path)).tools for name, path in model_dirs.items()
    }
    forms, backend = Forms(formats), Backend(next(iter(model_dirs.values())))
    found = Found(Counter(), 0, 0, 0, [])
    while found.answers.total() < answers:
        found.structures += 1
        asked = forms.any(rng)
        output = asked.sampling.structured_output
        assert output is not None
        try:
            check_structured_output(replace(asked.sampling), output)
            for made in backend.answers(rng, asked.sampling, each):
                if made is None:
                    found.unfinished += 1
                    continue
                found.answers[asked.form] += 1
                if problem := _problem(asked, made):
                    found.wrong.append(f"{asked.form}: {problem}: {output.values} -> {made!r}")
        except (NotTaken, InvalidRequest):
            found.refused += 1
    return found


def _problem(asked: Asked, made: bytes) -> str | None:
    try:
        return asked.wrong(made.decode())
    except UnicodeDecodeError:
        return "no UTF-8"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        v3, v11, v7 = (Path(folder, name) for name in ("v3", "v11", "v7"))
        for path in (v3, v11):
            write_random_checkpoint(path, SMALL)
        set_version(v11, "v11")
        write_random_checkpoint(v7, replace(SMALL, tokenizer="sentencepiece"))
        every = [
            run(model_dirs, answers=given.answers // 2, seed=given.seed)
            for model_dirs in ({"v3": v3, "v11": v11}, {"v7 of SentencePiece": v7})
        ]
    return max(map(_printed, every))


def _printed(found: Found) -> int:
    for line in found.wrong:
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(
        f"{found.answers.total()} answers of {found.structures} structures, "
        f"{found.refused} refused: {len(found.wrong)} wrong, {found.unfinished} unfinished\n"
        + ", ".join(f"{count} {form}" for form, count in sorted(found.answers.items()))
        + "\n"
    )
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
