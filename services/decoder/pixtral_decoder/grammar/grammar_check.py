"""Checks a structure in a thread, before vLLM reads the structure on the event loop.

vLLM reads a schema, expression or grammar on the event loop, so a slow structure would delay every
other stream. A thread reads each structure first, and a slow structure never reaches vLLM.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable

from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from xgrammar import CompiledGrammar, GrammarCompiler

from pixtral_core import limits
from pixtral_core.concurrency.daemon_threads import call_in_loop, in_daemon_thread
from pixtral_core.errors import log_place
from pixtral_decoder.grammar.completion import completed
from pixtral_decoder.grammar.cost_trial import NothingFollows, is_slow
from pixtral_decoder.grammar.patterns import mended, needs_escapes, patterns, with_caret
from pixtral_decoder.grammar.unsupported import (
    beyond_xgrammar,
    circular,
    ignored,
    malformed,
    not_enforced,
)
from pixtral_decoder.vllm_hooks.grammar_vocabulary import has_json, in_json
from pixtral_decoder.vllm_hooks.one_line_json import is_on_one_line, on_one_line
from pixtral_decoder.vllm_hooks.refusals import REFUSALS
from pixtral_decoder.vllm_hooks.structure_check import is_lark, validate

# This limit is for the processor time of the thread, so that other work on the machine does not
# make a schema seem too complex.
MAX_CPU_SECONDS = limits.STRUCTURE_READ_SECONDS.high
MAX_SECONDS = limits.STRUCTURE_WAIT_SECONDS.high

# The errors that parsers raise about a structure. An error of another type may be a fault of this
# code.
MISTAKES: tuple[type[Exception], ...] = (*REFUSALS, RuntimeError)


LONG_TO_READ = "takes too long to read: make it smaller"
SLOW = "takes too long to follow: write it so that a text can be read in one way only"
LEADS_NOWHERE = (
    "an answer can reach a point where it may neither continue nor end: change the structure there"
)
MALFORMED_SCHEMA = "is not a JSON Schema that the engine can follow: check its types and values"
MALFORMED_REGEX = (
    "is not a regular expression that the engine can read: leave out look-around and back "
    "references, and close each bracket"
)
MALFORMED_GRAMMAR = (
    "is not a grammar that the engine can read: write EBNF with a rule root, or Lark with a rule "
    "start, and define each rule that it names"
)


class NotTaken(Exception):
    """The structure has a mistake, is too complex, or has a keyword that the engine cannot enforce.

    If the decoder knows the mistake and its place, the message says both. The message may contain
    names from the schema.
    """


class StructureCheck:
    """Reads at most two structures at a time.

    Nothing can stop a thread that reads: it continues even after its request has ended.
    """

    def __init__(self) -> None:
        self._threads = asyncio.Semaphore(2)

    async def check(self, parameters: SamplingParams) -> None:
        """Raises NotTaken if vLLM's SamplingParams have a value that vLLM does not take.

        `parameters` must have a structure with a content, and not just the demand for a JSON
        object.
        """
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                _read(parameters)
            finally:
                call_in_loop(loop, self._threads.release)

        await self._threads.acquire()
        try:
            async with asyncio.timeout(MAX_SECONDS):
                await in_daemon_thread(read, "read-structure")
        except NotTaken:
            raise
        except TimeoutError:
            raise NotTaken(LONG_TO_READ) from None
        except NothingFollows:
            raise NotTaken(LEADS_NOWHERE) from None
        except Exception as error:
            # Each of the four parsers raises other types of errors for mistakes.
            is_mistake = isinstance(error, MISTAKES)
            level = logging.DEBUG if is_mistake else logging.WARNING
            log_place(error, "a structure could not be read", level)
            raise NotTaken(_malformed(parameters) if is_mistake else "") from None


def _malformed(parameters: SamplingParams) -> str:
    wanted = parameters.structured_outputs
    if wanted is not None and wanted.regex is not None:
        return MALFORMED_REGEX
    if wanted is not None and wanted.grammar is not None:
        return MALFORMED_GRAMMAR
    return MALFORMED_SCHEMA


def _read(parameters: SamplingParams) -> None:
    wanted, began = parameters.structured_outputs, time.thread_time()
    if wanted is None:
        raise NotTaken
    until = began + MAX_CPU_SECONDS
    schema = _schema(wanted)
    if wanted.regex is not None:
        wanted.regex = with_caret(wanted.regex)
    if schema is not None:
        wanted.json = schema = _checked(schema, until)
    elif has_json(wanted.grammar or ""):
        wanted.grammar = _with_schemas_checked(wanted.grammar or "", until)
    # This also turns a choice into a grammar.
    validate(parameters)
    if schema is not None and wanted.disable_any_whitespace:
        wanted.json = on_one_line(schema)
    if time.thread_time() - began > MAX_CPU_SECONDS:
        raise NotTaken(LONG_TO_READ)
    is_json = schema is not None or has_json(wanted.grammar or "")
    if is_slow(compiling(wanted), in_json if is_json else bytes):
        raise NotTaken(SLOW)


def _checked(schema: str, until: float) -> str:
    """The schema for the engine. Raises NotTaken if the engine could not make answers fit it."""
    parsed = json.loads(schema)
    # Without the types, vLLM overlooks keywords that xgrammar does not enforce.
    made = completed(mended(parsed))
    for trouble in (ignored(parsed), circular(parsed), beyond_xgrammar(made)):
        if trouble is not None:
            raise NotTaken(trouble)
    for path, pattern in patterns(parsed):
        if time.thread_time() > until:
            raise NotTaken(LONG_TO_READ)
        if needs_escapes(pattern):
            raise NotTaken(not_enforced("a pattern with a quotation mark or a backslash", path))
    if made != parsed:
        schema = json.dumps(made)
    try:
        validate(SamplingParams(structured_outputs=StructuredOutputsParams(json=schema)))
    except MISTAKES as error:
        log_place(error, "a structure could not be read", logging.DEBUG)
        raise NotTaken(malformed(parsed) or MALFORMED_SCHEMA) from None
    return schema


def _with_schemas_checked(lark: str, until: float) -> str:
    """A grammar in which each schema is in the engine's form."""
    made, at, count = "", 0, 0
    for found in _LARK_JSON.finditer(lark):
        if found[1] is None or found.start() < at:
            continue
        _, end = json.JSONDecoder().raw_decode(lark, found.end())
        count += 1
        try:
            checked = _checked(lark[found.end() : end], until)
        except NotTaken as error:
            raise NotTaken(f"schema {count} of the grammar: {error}") from None
        made += lark[at : found.end()] + checked
        at = end
    return made + lark[at:]


# Either a comment, a string or an expression, none of which contains a schema; or the keyword
# before a schema.
_LARK_JSON = re.compile(r'//[^\n]*|"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)+/|(%json)\s*')


def compiling(wanted: StructuredOutputsParams) -> Callable[[GrammarCompiler], CompiledGrammar]:
    """Compiles a checked structure as vLLM does.

    The source is the text of the structure, not a Grammar object: xgrammar would compile the
    printed form of a Grammar, which may differ.
    """

    def compile_grammar(compiler: GrammarCompiler) -> CompiledGrammar:
        if (schema := _schema(wanted)) is not None:
            any_whitespace = not is_on_one_line(schema)
            return compiler.compile_json_schema(schema, any_whitespace=any_whitespace)
        if wanted.regex is not None:
            return compiler.compile_regex(wanted.regex)
        grammar = wanted.grammar or ""
        if is_lark(grammar):
            return compiler.compile_lark(grammar)
        return compiler.compile_grammar(grammar)

    return compile_grammar


def _schema(wanted: StructuredOutputsParams) -> str | None:
    # vLLM also takes a parsed schema, but the decoder only passes text.
    return wanted.json if isinstance(wanted.json, str) else None
