"""Checks a constraint in a thread, before vLLM reads it on the event loop.

vLLM reads a schema, expression or grammar where it takes the request, and would keep every other
stream waiting for one that takes long. So it is read in a thread first, and what is not read soon
never gets there.
"""

import asyncio
import json
import time
from typing import Any

from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar
from vllm.v1.structured_output.utils import grammar_is_likely_lark
from xgrammar import Grammar

from pixtral_core import limits
from pixtral_core.concurrency.daemon_threads import in_daemon_thread
from pixtral_decoder.grammar.cost_trial import is_slow

# A thread's own processor time: a busy machine makes no schema too complex.
MAX_CPU_SECONDS = limits.STRUCTURE_READ_SECONDS.high
MAX_SECONDS = limits.STRUCTURE_WAIT_SECONDS.high


class NotTaken(Exception):
    """It has a mistake, or what the engine has no way to hold an answer to, or is too complex."""


class StructureCheck:
    """Reads two at a time: a thread cannot be stopped, and goes on when its request has gone."""

    def __init__(self) -> None:
        self._threads = asyncio.Semaphore(2)

    async def check(self, parameters: Any) -> None:
        """Raises NotTaken where vLLM's SamplingParams hold what it does not take.

        They name what an answer is to be, and not just that it be a JSON object.
        """
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                _read(parameters)
            finally:
                loop.call_soon_threadsafe(self._threads.release)

        await self._threads.acquire()
        try:
            async with asyncio.timeout(MAX_SECONDS):
                await in_daemon_thread(read, "read-structure")
        except Exception:
            # Mistakes show in whichever way the parsers of four languages have for them.
            raise NotTaken from None


def _read(parameters: Any) -> None:
    wanted, began = parameters.structured_outputs, time.thread_time()
    if wanted.json is not None:
        _refuse_ignored(json.loads(wanted.json))
    elif "%json" in (wanted.grammar or "") and grammar_is_likely_lark(wanted.grammar):
        # vLLM 0.25 would make EBNF of it by itself, and cannot of a schema.
        wanted.grammar = _with_json_characters(str(Grammar.from_lark(wanted.grammar)))
    # Leaves choices as a grammar.
    validate_xgrammar_grammar(parameters)
    if wanted.json is not None:
        on_one_line = wanted.disable_any_whitespace
        grammar = str(Grammar.from_json_schema(wanted.json, any_whitespace=not on_one_line))
        # vLLM itself knows of white space for a whole engine only.
        if on_one_line or _COUNTED in grammar:
            wanted.grammar, wanted.json = _with_json_characters(grammar), None
    if time.thread_time() - began > MAX_CPU_SECONDS or is_slow(_grammar(wanted)):
        raise NotTaken


# How xgrammar writes one of the characters that `minLength` and `maxLength` count. Control
# characters, which no string of JSON has, it would let through; escapes it leaves out, as we do:
# with them each step of the engine would take 0.2 s longer for a `maxLength` of 200.
_COUNTED = r"::= (([^\"\\\r\n]))"
_COUNTED_OF_JSON = r"::= (([^\0-\x1f\"\\]))"


def _with_json_characters(grammar: str) -> str:
    return grammar.replace(_COUNTED, _COUNTED_OF_JSON)


def _grammar(wanted: Any) -> Any:
    if wanted.json is not None:
        return Grammar.from_json_schema(wanted.json)
    if wanted.regex is not None:
        return Grammar.from_regex(wanted.regex)
    if grammar_is_likely_lark(wanted.grammar):
        return Grammar.from_lark(wanted.grammar)
    return Grammar.from_ebnf(wanted.grammar)


# Passed over without a word, where an answer could then be something else than was asked for.
_IGNORED = ("not", "if", "$dynamicRef", "$recursiveRef")
# What lies in these are schemas by name, and what lies in those is none.
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_PLAIN = ("enum", "const", "default", "example", "examples")


def _refuse_ignored(schema: Any) -> None:
    if isinstance(schema, list):
        for each in schema:
            _refuse_ignored(each)
    if not isinstance(schema, dict):
        return
    reference = schema.get("$ref", "#")
    is_elsewhere = isinstance(reference, str) and not reference.startswith("#")
    if is_elsewhere or any(keyword in schema for keyword in _IGNORED):
        raise NotTaken
    for keyword, value in schema.items():
        if keyword in _NAMED and isinstance(value, dict):
            _refuse_ignored(list(value.values()))
        elif keyword not in _PLAIN:
            _refuse_ignored(value)
