"""Mistral's tokens as bytes, for what holds an answer to a grammar.

vLLM gives them to xgrammar as texts, in which a token that is part of a character is U+FFFD. So no
answer that is held to anything could have a character of several tokens, as most emoji are, and
where it must have one, no token is allowed and the request fails.
"""

from typing import Any


def spell_in_bytes() -> None:
    """From now on, in this process."""
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    begin = XgrammarBackend.__post_init__

    def begin_with_bytes(backend: Any) -> None:
        tokenizer = backend.tokenizer
        texts = getattr(tokenizer, "_vocab", None)
        if texts is None or not getattr(tokenizer, "is_tekken", False):
            begin(backend)
            return
        tokenizer._vocab = pieces(tokenizer.tokenizer, texts)
        try:
            begin(backend)
        finally:
            tokenizer._vocab = texts

    XgrammarBackend.__post_init__ = begin_with_bytes


def pieces(tekkenizer: Any, texts: list[str]) -> list[bytes]:
    """Each token's bytes; of a control token its name's."""
    return [
        text.encode() if tekkenizer.is_special(token) else tekkenizer.id_to_byte_piece(token)
        for token, text in enumerate(texts)
    ]
