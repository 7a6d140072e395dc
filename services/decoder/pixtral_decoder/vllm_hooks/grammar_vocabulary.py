"""Passes Mistral's tokens to xgrammar as bytes, so that a grammar allows every character.

Library: vLLM
Changes: XgrammarBackend reads each token of a Tekken tokenizer as the token's bytes, and ignores
    the control tokens of SentencePiece. It compiles JSON for a vocabulary without the control
    characters that JSON strings must not have.
Why: vLLM passes the tokens to xgrammar as texts, in which a token that is part of a character is
    U+FFFD. A structured output then cannot have a character of several tokens, such as most emoji.
    If the structure requires such a character, xgrammar allows no token and the request fails. vLLM
    also passes a control token as the text of its name. And xgrammar allows control characters,
    which no JSON string may have, in strings of a bounded length and in patterns.
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

# In a grammar in Lark, a schema comes after this keyword.
_LARK_JSON = "%json"
# The hook stores the compiler for JSON in this attribute of the backend.
_JSON_COMPILER = "pixtral_json_compiler"
# JSON may have line breaks between values, but not within a string. xgrammar itself excludes line
# breaks from strings, so that they need not be here.
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
    """Passes tokens to xgrammar as bytes, in this process from now on."""
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    begin: Callable[[XgrammarBackend], None] = XgrammarBackend.__post_init__

    @wraps(begin)
    def begin_with_bytes(backend: "XgrammarBackend") -> None:
        # Only the tokens of Mistral's tokenizers need another spelling.
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
    """Compiles JSON for the vocabulary without control characters, in this process from now on.

    Call it after all other hooks that change how vLLM compiles a schema.
    """
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
            # The original must not change, because the same backend may compile another request's
            # structure at the same time.
            backend = copy.copy(backend)
            backend.compiler = getattr(backend, _JSON_COMPILER)
        return compile_grammar(backend, request_type, grammar_spec, *args, **kwargs)

    XgrammarBackend.compile_grammar = compile_apart  # type: ignore[assignment, method-assign]


def has_json(grammar: str) -> bool:
    """Whether a grammar in Lark contains a schema."""
    return _LARK_JSON in grammar


def in_json(piece: bytes) -> bytes:
    """A token's bytes; empty if one of them is a control character that no JSON has."""
    return piece if _NOT_JSON.isdisjoint(piece) else b""


def pieces(tekkenizer: Tekkenizer, count: int) -> list[bytes]:
    """The bytes of each token.

    They are empty for a control token and for a token with a byte that UTF-8 does not have, because
    no text has such a token. xgrammar never allows a token without bytes.
    """
    return [
        b"" if tekkenizer.is_special(token) else _in_text(tekkenizer.id_to_byte_piece(token))
        for token in range(count)
    ]


def sentencepieces(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """The piece of each token, as SentencePiece spells it; empty for a token that no text has."""
    return [
        "" if tokenizer.is_special(token) or not _in_text(piece_bytes(piece)) else piece
        for token, piece in enumerate(texts)
    ]


def _in_text(piece: bytes) -> bytes:
    return piece if _NOT_UTF8.isdisjoint(piece) else b""
