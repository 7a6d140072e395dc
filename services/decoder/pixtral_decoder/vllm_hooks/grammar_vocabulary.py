"""Gives xgrammar Mistral's tokens as bytes, so that a grammar allows every character.

Library: vLLM
Changes: XgrammarBackend, as it begins, reads each token of a Tekken tokenizer as its bytes.
Why: vLLM gives xgrammar the tokens as texts, in which a token that is part of a character is
    U+FFFD. A structured output then cannot have a character of several tokens, as most emoji are;
    where it must have one, xgrammar allows no token and the request fails. And vLLM gives a control
    token as the text of its name.
Upstream: none known
Versions: vLLM 0.25.1 to 0.33.0
"""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol

from pixtral_core.hooks import Touch, check_touches

if TYPE_CHECKING:
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

_BACKEND = "vllm.v1.structured_output.backend_xgrammar"
_TOKENIZER = "vllm.tokenizers.mistral"
_TEKKEN = "mistral_common.tokens.tokenizers.tekken"
TOUCHES = (
    Touch(_BACKEND, "XgrammarBackend.__post_init__", mentions=("tokenizer", "vocab", "is_tekken")),
    Touch(_TOKENIZER, "MistralTokenizer.__init__", mentions=("_vocab", "is_tekken", "tokenizer")),
    Touch(_TOKENIZER, "MistralTokenizer.vocab", mentions=("_vocab",)),
    Touch(_TEKKEN, "Tekkenizer.is_special", parameters=("token",)),
    Touch(_TEKKEN, "Tekkenizer.id_to_byte_piece", parameters=("token_id",)),
)

_NOT_UTF8 = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))


class Tekkenizer(Protocol):
    """What is touched of mistral_common's Tekkenizer."""

    def is_special(self, token: int) -> bool: ...

    def id_to_byte_piece(self, token_id: int) -> bytes: ...


def check_upstream() -> None:
    """Raises HookBroken where vLLM has moved."""
    check_touches(__name__, TOUCHES)


def spell_in_bytes() -> None:
    """From now on, in this process."""
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    begin: Callable[[XgrammarBackend], None] = XgrammarBackend.__post_init__

    @wraps(begin)
    def begin_with_bytes(backend: "XgrammarBackend") -> None:
        # Of several kinds, of which Mistral's alone is spelled anew.
        tokenizer: Any = backend.tokenizer
        if not getattr(tokenizer, "is_tekken", False):
            begin(backend)
            return
        texts = tokenizer._vocab
        tokenizer._vocab = pieces(tokenizer.tokenizer, len(texts))
        try:
            begin(backend)
        finally:
            tokenizer._vocab = texts

    XgrammarBackend.__post_init__ = begin_with_bytes  # type: ignore[method-assign]


def pieces(tekkenizer: Tekkenizer, count: int) -> list[bytes]:
    """Each token's bytes; none, which xgrammar never allows, of one that can be in no text: a
    control token, or a byte that UTF-8 does not have."""
    return [
        b"" if tekkenizer.is_special(token) else _in_text(tekkenizer.id_to_byte_piece(token))
        for token in range(count)
    ]


def _in_text(piece: bytes) -> bytes:
    return piece if _NOT_UTF8.isdisjoint(piece) else b""
