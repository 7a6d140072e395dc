"""Returns the whole characters of an answer's last token if the token ends within a character.

Library: vLLM
Changes: nothing; it adds the text that vLLM keeps back to the answer's last text.
Why: if a token ends within a character, vLLM keeps the token's whole text back until the next token
    has the rest of the character. If `max_tokens` ends the answer there, no next token comes, and
    the answer lacks also the whole characters of the last token.
Upstream: none known
Versions: vLLM 0.25.1 to 0.33.0
"""

import codecs
from collections import deque
from collections.abc import Sequence
from typing import Any

from pixtral_core.hooks import Touch, check_touches
from pixtral_core.model.sentencepiece import piece_bytes

_TEKKEN = "mistral_common.tokens.tokenizers.tekken"
_SENTENCEPIECE = "mistral_common.tokens.tokenizers.sentencepiece"
TOUCHES = (
    Touch(
        "vllm.tokenizers.mistral",
        "MistralTokenizer.__init__",
        mentions=("tokenizer", "is_tekken"),
    ),
    Touch(
        "vllm.v1.engine.detokenizer",
        "BaseIncrementalDetokenizer.update",
        parameters=("new_token_ids", "stop_terminated"),
    ),
    Touch(_TEKKEN, "Tekkenizer.is_special", parameters=("token",)),
    Touch(_TEKKEN, "Tekkenizer.id_to_byte_piece", parameters=("token_id",)),
    Touch(_SENTENCEPIECE, "SentencePieceTokenizer.is_special", parameters=("token",)),
    Touch(_SENTENCEPIECE, "SentencePieceTokenizer.id_to_piece", parameters=("token_id",)),
)

# These are enough tokens, because a character never spans as many.
RECENT = 32
# A decoder of UTF-8 puts this character in place of bytes that are no character. vLLM keeps text
# back that ends with it.
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def check_upstream() -> None:
    """Raises HookBroken if vLLM has changed."""
    check_touches(__name__, TOUCHES)


class LastCharacters:
    """The characters of one choice that vLLM keeps back.

    `generated` are the tokens of the choice that another decoder has made.
    """

    def __init__(self, tokenizer: Any, generated: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer.tokenizer
        self._is_tekken = tokenizer.is_tekken
        self._recent = deque(generated, RECENT)

    def add(self, token_ids: Sequence[int]) -> None:
        self._recent.extend(token_ids)

    def kept_back(self, *, behind_stop_token: bool) -> str:
        """Whole characters of the last tokens. A stop token at the end is not part of the text."""
        tokens = list(self._recent)
        # The first token of a longer answer may begin within a character.
        is_sure = len(tokens) < RECENT
        if behind_stop_token:
            del tokens[-1:]
        characters = codecs.getincrementaldecoder("utf-8")("replace")
        text = ""
        for token in tokens:
            text += characters.decode(self._bytes_of(token))
            within_a_character, _ = characters.getstate()
            if not within_a_character and not text.endswith(_REPLACEMENT):
                text, is_sure = "", True
        return text if is_sure else ""

    def _bytes_of(self, token: int) -> bytes:
        if self._tokenizer.is_special(token):
            return b""
        if self._is_tekken:
            return bytes(self._tokenizer.id_to_byte_piece(token))
        return piece_bytes(self._tokenizer.id_to_piece(token))
