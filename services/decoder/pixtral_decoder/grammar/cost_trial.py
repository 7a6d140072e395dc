"""Tries a grammar byte by byte, and refuses one that takes too long.

At every step the engine computes which tokens may follow, for one request after the other. For an
ordinary grammar this takes microseconds. But a grammar can be so ambiguous that the time grows with
each token: after a thousand tokens every step takes a second, for all requests. And if a grammar
parses but does not compile, the whole engine ends in a vLLM without pull request 47312.
"""

import secrets
import time
from collections.abc import Callable, Sequence

from xgrammar import (
    CompiledGrammar,
    GrammarCompiler,
    GrammarMatcher,
    TokenizerInfo,
    allocate_token_bitmask,
)

from pixtral_core import limits

# An ordinary grammar takes a tenth of this limit, and an ambiguous grammar many times the limit.
MAX_CPU_SECONDS = limits.STRUCTURE_TRIAL_SECONDS.high
STEPS = 256
# A byte that has no alternative is forced, and does not count as a step. Each forced byte adds to
# the time limit many times what an unambiguous grammar needs for a byte. After MAX_FORCED forced
# bytes the walk ends, and the engine runs the grammar without a further trial.
MAX_FORCED = 1 << 12
FORCED_CPU_SECONDS = 20e-6

# The walks take the first possible byte, the last, and a random one, because a single walk may miss
# an ambiguity.
WALKS: tuple[Callable[[Sequence[int]], int], ...] = (min, max, secrets.choice)

END = 0
BYTES = [bytes([value]) for value in range(256)]


class NothingFollows(Exception):
    """A trial answer came to a point where it may neither continue nor end."""


def is_slow(
    compile_grammar: Callable[[GrammarCompiler], CompiledGrammar],
    piece: Callable[[bytes], bytes] = bytes,
) -> bool:
    """Whether a grammar takes too long for some answer, in a vocabulary of single bytes.

    `piece` excludes the bytes that the engine's vocabulary does not have.

    Raises NothingFollows if a trial answer could not continue.
    """
    spelled = list(map(piece, BYTES))
    vocabulary = TokenizerInfo(spelled, vocab_size=len(BYTES), stop_token_ids=[END])
    compiled = compile_grammar(GrammarCompiler(vocabulary, max_threads=1, cache_enabled=False))
    left = MAX_CPU_SECONDS
    for choose in WALKS:
        left = _walk(compiled, choose, left)
    return left <= 0


def _walk(
    compiled: CompiledGrammar, choose: Callable[[Sequence[int]], int], seconds: float
) -> float:
    """The processor time that is left for all walks; zero if it does not suffice."""
    until = time.thread_time() + seconds
    matcher = GrammarMatcher(compiled)
    mask = allocate_token_bitmask(1, len(BYTES))
    bits = mask[0].numpy()
    steps = forced = 0
    while steps < STEPS and forced < MAX_FORCED:
        if time.thread_time() > until:
            return 0.0
        matcher.fill_next_token_bitmask(mask, 0)
        may_come = int.from_bytes(bits.tobytes(), "little")
        if not may_come:
            raise NothingFollows
        if may_come.bit_count() == 1 and may_come != 1 << END:
            following, forced = may_come.bit_length() - 1, forced + 1
            until += FORCED_CPU_SECONDS
        elif allowed := [i for i in range(1, len(BYTES)) if may_come >> i & 1]:
            following, steps = choose(allowed), steps + 1
        else:
            break
        if not matcher.accept_token(following):
            break
    # Forced bytes leave none of their time to the steps of the next walk.
    return min(seconds, until - time.thread_time())
