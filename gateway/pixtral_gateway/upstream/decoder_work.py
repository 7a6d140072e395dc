"""Tracks how much a decoder has left to compute, and which beginnings of prompts it has
computed."""

import math
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final

# Beginnings of prompts are compared in blocks of this many tokens.
BLOCK_TOKENS: Final = 128
# The most blocks that are remembered for a decoder: more than fit into the memory of a card and its
# host.
MOST_BLOCKS: Final = 32_768
# An answer that is being written takes as much of each step as this many tokens of a prompt.
ANSWER_TOKENS: Final = 16

# The names of a prompt's whole blocks. A name stands for the whole prompt up to the block's end.
Blocks = Sequence[int]


def blocks_of(
    token_ids: Sequence[int], images: Iterable[tuple[int, bytes]], scope: Sequence[str]
) -> Blocks:
    """The blocks of a prompt with images at these offsets, by the digests of the images' keys.

    Prompts of different `scope` (tenant and adapter) share no keys and values. Images of one size
    have equal token ids: their digests tell them apart.
    """
    tokens = array("I", token_ids).tobytes()
    size = array("I").itemsize * BLOCK_TOKENS
    marks: dict[int, bytes] = {}
    for offset, digest in images:
        number = offset // BLOCK_TOKENS
        marks[number] = marks.get(number, b"") + digest
    # The names stay in this process, so Python's own hash is enough.
    name = hash(tuple(scope))
    blocks = []
    for number in range(len(token_ids) // BLOCK_TOKENS):
        block = tokens[number * size : (number + 1) * size]
        name = hash((name, block, marks.get(number)))
        blocks.append(name)
    return blocks


class Beginnings:
    """The blocks that a decoder has computed, or will have computed when it begins the next
    request.

    An engine drops the least recently used blocks first. When an answer shows that a block is gone,
    the blocks that were used earlier are gone, too.
    """

    def __init__(self) -> None:
        # The value says whether an answer has shown the block. The oldest blocks come first.
        self._blocks: OrderedDict[int, bool] = OrderedDict()

    def tokens(self, blocks: Blocks) -> int:
        """The number of tokens at the prompt's beginning that need no computation."""
        return BLOCK_TOKENS * sum(1 for _ in takewhile(self._blocks.__contains__, blocks))

    def shown(self, blocks: Blocks) -> int:
        """Like `tokens`, but counts only blocks that answers have shown."""
        return BLOCK_TOKENS * sum(1 for _ in takewhile(self._blocks.get, blocks))

    def expect(self, blocks: Blocks) -> list[int]:
        """Adds the blocks of a request that is sent to the decoder. Returns the blocks that are
        new."""
        new = [block for block in blocks if block not in self._blocks]
        self._blocks.update(dict.fromkeys(reversed(new), False))
        return new

    def give_up(self, new: Iterable[int]) -> None:
        """Removes the new blocks of a request that ended before it began, because the decoder may
        not have computed them."""
        for block in new:
            if self._blocks.get(block) is False:
                del self._blocks[block]

    def computed(self, blocks: Blocks, shown: int, cached_tokens: int) -> None:
        """Adds the blocks of a request that began. `shown` is the number of its tokens that earlier
        answers had shown, and `cached_tokens` the number that the decoder had."""
        # An engine always computes a prompt's last token, and with it the block of that token.
        if cached_tokens < shown - BLOCK_TOKENS:
            self._drop_until(blocks[cached_tokens // BLOCK_TOKENS])
        # An engine drops the later blocks of a prompt before the earlier ones.
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
    """One request at a decoder. Its tokens count as work until the request begins or ends."""

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
        """Notes that the first response of the answer has come."""
        self.work.begun(self, cached_tokens)


class DecoderWork:
    """One decoder's work as one gateway knows it: its own requests, and the decoder's report of all
    gateways' requests.

    Attributes:
        tokens: tokens of this gateway's prompts that the decoder must compute before the next one.
        answers: answers to this gateway's requests that have not ended.
        tokens_per_second: rate of the decoder's recent prompts; 0 if unknown.
        beginnings: beginnings of prompts that the decoder has computed.
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
        """Tokens to compute before the next prompt, including those of other gateways' requests.

        Other gateways' tokens are those of the last report, less what the decoder has computed
        since.
        """
        since = self._clock() - self._reported_at
        others = max(0.0, self._others_tokens - since * tokens_per_second)
        return self.tokens + others + ANSWER_TOKENS * (self.answers + self._others_answers)

    def new_tokens(self, blocks: Blocks, tokens: int) -> int:
        """The number of tokens of a prompt that the decoder would compute, at least 1."""
        return max(tokens - self.beginnings.tokens(blocks), 1)

    def report(self, tokens: int, answers: int, tokens_per_second: float) -> None:
        """Takes the decoder's report of all gateways' requests, this gateway's included."""
        self._reported_at = self._clock()
        self._others_tokens = max(0, tokens - self.tokens)
        self._others_answers = max(0, answers - self.answers)
        self.tokens_per_second = tokens_per_second

    def forget(self) -> None:
        """Forgets all, because another process has this address or will have it, and has computed
        nothing."""
        self.beginnings.clear()
        self._others_tokens = self._others_answers = 0
        self.tokens_per_second = 0.0

    @contextmanager
    def sent(self, blocks: Blocks, tokens: int, answers: int) -> Iterator[Prompted]:
        """Counts a request with this many prompt tokens and answers at the decoder during the
        block. The request stops counting in whatever way the block ends.
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
