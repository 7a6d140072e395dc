"""Knows how much a decoder has left to compute, and which beginnings of prompts it has computed."""

import hashlib
import math
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final

# Beginnings of prompts are compared in blocks of so many tokens.
BLOCK_TOKENS: Final = 128
# Blocks that one decoder is remembered to have: more than fit on a card with a host's memory
# behind it.
MOST_BLOCKS: Final = 32_768
# An answer that is being written takes as much of each step as so many tokens of a prompt.
ANSWER_TOKENS: Final = 16

# Names of a prompt's whole blocks, each standing for everything up to its end.
Blocks = Sequence[int]


def blocks_of(
    token_ids: Sequence[int], images: Iterable[tuple[int, bytes]], scope: Sequence[str]
) -> Blocks:
    """The blocks of a prompt whose images are at these offsets, by their keys' digests.

    Prompts of different `scope` (tenant and adapter) share no keys and values. Images of one size
    have equal token ids: their digests tell them apart.
    """
    tokens = array("I", token_ids).tobytes()
    size = array("I").itemsize * BLOCK_TOKENS
    marks: dict[int, bytes] = {}
    for offset, digest in images:
        number = offset // BLOCK_TOKENS
        marks[number] = marks.get(number, b"") + digest
    name = hashlib.blake2b(repr(tuple(scope)).encode(), digest_size=8).digest()
    blocks = []
    for number in range(len(token_ids) // BLOCK_TOKENS):
        chained = hashlib.blake2b(name, digest_size=8)
        chained.update(tokens[number * size : (number + 1) * size])
        chained.update(marks.get(number, b""))
        name = chained.digest()
        blocks.append(int.from_bytes(name, "big"))
    return blocks


class Beginnings:
    """The blocks that a decoder has, or will have when it comes to the next request.

    An engine drops what was used longest ago. When its answer shows that a block is gone, what was
    used before that block is therefore gone, too.
    """

    def __init__(self) -> None:
        # The value: an answer has shown that the block is there. The oldest are first.
        self._blocks: OrderedDict[int, bool] = OrderedDict()

    def tokens(self, blocks: Blocks) -> int:
        """Tokens at the beginning of a prompt that need not be computed."""
        return BLOCK_TOKENS * sum(1 for _ in takewhile(self._blocks.__contains__, blocks))

    def shown(self, blocks: Blocks) -> int:
        """The same, as far as answers have shown it."""
        return BLOCK_TOKENS * sum(1 for _ in takewhile(self._blocks.get, blocks))

    def expect(self, blocks: Blocks) -> list[int]:
        """A request is sent, after which the decoder will have them; gives those that are new."""
        new = [block for block in blocks if block not in self._blocks]
        self._blocks.update(dict.fromkeys(reversed(new), False))
        return new

    def give_up(self, new: Iterable[int]) -> None:
        """The request ended before it began: it has computed nothing that anyone knows of."""
        for block in new:
            if self._blocks.get(block) is False:
                del self._blocks[block]

    def computed(self, blocks: Blocks, shown: int, cached_tokens: int) -> None:
        """The request has begun, and found so many tokens; `shown` were expected without doubt."""
        # An engine computes a prompt's last token in any case, and with it the block that it is in.
        if cached_tokens < shown - BLOCK_TOKENS:
            self._drop_until(blocks[cached_tokens // BLOCK_TOKENS])
        # The later ones of a prompt are dropped before the earlier ones.
        for block in reversed(blocks):
            self._blocks[block] = True
            self._blocks.move_to_end(block)
        while len(self._blocks) > MOST_BLOCKS:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        self._blocks.clear()

    def _drop_until(self, gone: int) -> None:
        while gone in self._blocks:
            self._blocks.popitem(last=False)


@dataclass(slots=True, eq=False)
class Prompted:
    """One request at a decoder: its tokens count as work until it begins or ends."""

    work: "DecoderWork"
    blocks: Blocks
    tokens: int
    shown: int
    left: int = 0
    new: list[int] = field(default_factory=list)

    @property
    def has_begun(self) -> bool:
        return not self.left

    def begin(self, cached_tokens: int) -> None:
        """The first answer is there."""
        self.work.begun(self, cached_tokens)


class DecoderWork:
    """One decoder's work, as far as one gateway knows: its own requests, and what the decoder
    reports of all gateways'.

    Attributes:
        tokens: of this gateway's prompts, that the decoder has to compute before it comes to the
            next one.
        answers: of this gateway's requests, that have not ended.
        tokens_per_second: that it was seen to compute lately; 0 where nothing was seen.
        beginnings: of prompts, that it has computed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.tokens = 0
        self.answers = 0
        self.tokens_per_second = 0.0
        self.beginnings = Beginnings()
        self._others_tokens = 0.0
        self._others_answers = 0
        self._reported_at = -math.inf
        self._clock = clock

    def left(self, tokens_per_second: float) -> float:
        """Tokens to compute before the next prompt, other gateways' among them.

        Theirs are as of the last report, less what the decoder has computed since.
        """
        since = self._clock() - self._reported_at
        others = max(0.0, self._others_tokens - since * tokens_per_second)
        return self.tokens + others + ANSWER_TOKENS * (self.answers + self._others_answers)

    def new_tokens(self, blocks: Blocks, tokens: int) -> int:
        """Tokens of a prompt that it would compute; at least its last one."""
        return max(tokens - self.beginnings.tokens(blocks), 1)

    def report(self, tokens: int, answers: int, tokens_per_second: float) -> None:
        """Takes what the decoder says of all gateways' requests, this one's included."""
        self._reported_at = self._clock()
        self._others_tokens = max(0, tokens - self.tokens)
        self._others_answers = max(0, answers - self.answers)
        self.tokens_per_second = tokens_per_second

    def forget(self) -> None:
        """Another process is there, or will be: it has computed nothing."""
        self.beginnings.clear()
        self._others_tokens = self._others_answers = 0
        self.tokens_per_second = 0.0

    @contextmanager
    def sent(self, blocks: Blocks, tokens: int, answers: int) -> Iterator[Prompted]:
        """While a request of so many prompt tokens and answers is at the decoder.

        However the block ends, the request counts for nothing after it.
        """
        prompted = Prompted(self, blocks, tokens, self.beginnings.shown(blocks))
        prompted.left = self.new_tokens(blocks, tokens)
        prompted.new = self.beginnings.expect(blocks)
        self.tokens += prompted.left
        self.answers += answers
        try:
            yield prompted
        finally:
            self.answers -= answers
            self.tokens -= prompted.left
            if prompted.left:
                self.beginnings.give_up(prompted.new)

    def begun(self, prompted: Prompted, cached_tokens: int) -> None:
        self.tokens -= prompted.left
        prompted.left = 0
        self.beginnings.computed(prompted.blocks, prompted.shown, cached_tokens)
