"""Mistral's tokens as bytes, for what holds an answer to a grammar.

vLLM gives them to xgrammar as texts, in which a token that is part of a character is U+FFFD. So no
answer that is held to anything could have a character of several tokens, as most emoji are, and
where it must have one, no token is allowed and the request fails. A control token is, to vLLM, the
text of its name.
"""

from functools import wraps
from typing import Any

_NOT_UTF8 = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))


def spell_in_bytes() -> None:
    """From now on, in this process."""
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    begin = XgrammarBackend.__post_init__

    @wraps(begin)
    def begin_with_bytes(backend: Any) -> None:
        tokenizer = backend.tokenizer
        texts = getattr(tokenizer, "_vocab", None)
        if texts is None or not getattr(tokenizer, "is_tekken", False):
            begin(backend)
            return
        tokenizer._vocab = pieces(tokenizer.tokenizer, len(texts))
        try:
            begin(backend)
        finally:
            tokenizer._vocab = texts

    XgrammarBackend.__post_init__ = begin_with_bytes


def pieces(tekkenizer: Any, count: int) -> list[bytes]:
    """Each token's bytes; none, which xgrammar never allows, of one that can be in no text: a
    control token, or a byte that UTF-8 does not have."""
    return [
        b"" if tekkenizer.is_special(token) else _in_text(tekkenizer.id_to_byte_piece(token))
        for token in range(count)
    ]


def _in_text(piece: bytes) -> bytes:
    return piece if _NOT_UTF8.isdisjoint(piece) else b""
