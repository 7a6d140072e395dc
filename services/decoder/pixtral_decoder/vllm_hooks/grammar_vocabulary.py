"""Passes Mistral's tokens to xgrammar as bytes, so that a grammar allows every character.

Library: vLLM
Changes: XgrammarBackend reads each token of a Tekken tokenizer as its bytes, and no control token
    of SentencePiece as text. It compiles JSON for a vocabulary without the control characters that
    JSON strings must not have.
Why: vLLM passes the tokens to xgrammar as texts, in which a token that is part of a character is
    U+FFFD. A structured output then cannot have a character of several tokens, as most emoji are.
    If it must have one, xgrammar allows no token and the request fails. vLLM also passes a control
    token as the text of its name. xgrammar's own strings of a bounded length, and its expressions
    within JSON, allow control characters, which no JSON string has.
Upstream: none known
Versions: vLLM 0.25.1 to 0.33.0
"""

import copy
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol

from pixtral_core.hooks import Touch, check_touches
from pixtral_core.model.sentencepiece import piece_bytes

if TYPE_CHECKING:
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

_BACKEND = "vllm.v1.structured_output.backend_xgrammar"
_TOKENIZER = "vllm.tokenizers.mistral"
_TEKKEN = "mistral_common.tokens.tokenizers.tekken"
_SENTENCEPIECE = "mistral_common.tokens.tokenizers.sentencepiece"
TOUCHES = (
    Touch(_BACKEND, "XgrammarBackend.__post_init__", mentions=("tokenizer", "vocab", "is_tekken")),
    Touch(_BACKEND, "XgrammarBackend.__post_init__", mentions=("compiler",)),
    Touch(
        _BACKEND,
        "XgrammarBackend.compile_grammar",
        parameters=("request_type", "grammar_spec"),
        mentions=("compiler", "JSON", "GRAMMAR"),
    ),
    Touch("vllm.v1.structured_output.backend_types", "StructuredOutputOptions"),
    Touch(
        _TOKENIZER,
        "MistralTokenizer.__init__",
        mentions=("_vocab", "is_tekken", "is_spm", "tokenizer"),
    ),
    Touch(_TOKENIZER, "MistralTokenizer.vocab", mentions=("_vocab",)),
    Touch(_TEKKEN, "Tekkenizer.is_special", parameters=("token",)),
    Touch(_TEKKEN, "Tekkenizer.id_to_byte_piece", parameters=("token_id",)),
    Touch(_SENTENCEPIECE, "SentencePieceTokenizer.is_special", parameters=("token",)),
)

# Behind this Lark has a schema.
_LARK_JSON = "%json"
# An attribute of the backend.
_JSON_COMPILER = "pixtral_json_compiler"
# JSON has line breaks and tabs between values, and none within a string. xgrammar leaves line
# breaks out of strings by itself.
_NOT_JSON = frozenset(set(range(0x20)) - set(b"\r\n"))
_NOT_UTF8 = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))


class Tekkenizer(Protocol):
    """The part of mistral_common's Tekkenizer that this hook touches."""

    def is_special(self, token: int) -> bool: ...

    def id_to_byte_piece(self, token_id: int) -> bytes: ...


def check_upstream() -> None:
    """Raises HookBroken if vLLM has changed."""
    check_touches(__name__, TOUCHES)


def spell_in_bytes() -> None:
    """From now on, in this process."""
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    begin: Callable[[XgrammarBackend], None] = XgrammarBackend.__post_init__

    @wraps(begin)
    def begin_with_bytes(backend: "XgrammarBackend") -> None:
        # A tokenizer may be of several kinds; Mistral's alone is spelled anew.
        tokenizer: Any = backend.tokenizer
        is_tekken = getattr(tokenizer, "is_tekken", False)
        if not is_tekken and not getattr(tokenizer, "is_spm", False):
            begin(backend)
            return
        texts = tokenizer._vocab
        spelled: list[Any]
        for_json: list[Any]
        if is_tekken:
            spelled = pieces(tokenizer.tokenizer, len(texts))
            for_json = list(map(in_json, spelled))
        else:
            spelled = sentencepieces(tokenizer.tokenizer, texts)
            for_json = [each if in_json(piece_bytes(each)) else "" for each in spelled]
        try:
            tokenizer._vocab = for_json
            begin(backend)
            setattr(backend, _JSON_COMPILER, backend.compiler)
            tokenizer._vocab = spelled
            begin(backend)
        finally:
            tokenizer._vocab = texts

    XgrammarBackend.__post_init__ = begin_with_bytes  # type: ignore[method-assign]


def compile_json_apart() -> None:
    """From now on, in this process; behind all others that change how a schema is compiled."""
    from vllm.v1.structured_output.backend_types import StructuredOutputOptions
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    compile_grammar = XgrammarBackend.compile_grammar

    @wraps(compile_grammar)
    def compile_apart(
        backend: "XgrammarBackend",
        request_type: "StructuredOutputOptions",
        grammar_spec: str,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        is_json = request_type == StructuredOutputOptions.JSON or (
            request_type == StructuredOutputOptions.GRAMMAR and has_json(grammar_spec)
        )
        if is_json and hasattr(backend, _JSON_COMPILER):
            # Another request's structure is compiled at the same time, by the same backend.
            backend = copy.copy(backend)
            backend.compiler = getattr(backend, _JSON_COMPILER)
        return compile_grammar(backend, request_type, grammar_spec, *args, **kwargs)

    XgrammarBackend.compile_grammar = compile_apart  # type: ignore[assignment, method-assign]


def has_json(grammar: str) -> bool:
    """Whether a grammar in Lark has a schema in it."""
    return _LARK_JSON in grammar


def in_json(piece: bytes) -> bytes:
    """A token's bytes; none of one that has a character that no JSON has."""
    return piece if _NOT_JSON.isdisjoint(piece) else b""


def pieces(tekkenizer: Tekkenizer, count: int) -> list[bytes]:
    """Each token's bytes; none, which xgrammar never allows, of one that can be in no text: a
    control token, or a byte that UTF-8 does not have."""
    return [
        b"" if tekkenizer.is_special(token) else _in_text(tekkenizer.id_to_byte_piece(token))
        for token in range(count)
    ]


def sentencepieces(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """Each token's piece, whose bytes xgrammar knows; none of one that can be in no text."""
    return [
        "" if tokenizer.is_special(token) or not _in_text(piece_bytes(piece)) else piece
        for token, piece in enumerate(texts)
    ]


def _in_text(piece: bytes) -> bytes:
    return piece if _NOT_UTF8.isdisjoint(piece) else b""
