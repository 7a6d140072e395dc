"""The bytes of SentencePiece's pieces. For Tekken's tokens, mistral_common has the bytes itself."""

import re

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"
_UNKNOWN = "<unk>"
# SentencePiece's own text for a space.
_UNKNOWN_TEXT = " \u2047 "


def piece_bytes(piece: str) -> bytes:
    """The bytes of a piece's text; the piece must not be a control token. Some pieces are one byte
    of a character."""
    if byte := _BYTE.fullmatch(piece):
        return bytes.fromhex(byte.group(1))
    if piece == _UNKNOWN:
        return _UNKNOWN_TEXT.encode()
    return piece.replace(_SPACE, " ").encode()
