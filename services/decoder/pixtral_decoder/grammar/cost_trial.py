"""Tries a grammar byte by byte, and refuses one that takes too long.

At every step the engine computes which tokens may follow, for all of its requests in turn. That
takes microseconds. But a grammar can be so ambiguous that it takes longer with each token: a second
a step after a thousand of them, for everybody. And a grammar that parses but does not compile ends
the whole engine of a vLLM without pull request 47312.
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

# An ordinary grammar takes a tenth of it, and an ambiguous one many times as much.
MAX_CPU_SECONDS = limits.STRUCTURE_TRIAL_SECONDS.high
STEPS = 256
# A byte that has no alternative is not a step, and such bytes have a time limit of their own: many
# times the time of an unambiguous grammar. After more of them than this the trial ends, and the
# engine runs the rest.
MAX_FORCED = 1 << 12
FORCED_CPU_SECONDS = 20e-6

# Each walk takes the first possible byte, the last, or any: an ambiguity may hide from one of them.
WALKS: tuple[Callable[[Sequence[int]], int], ...] = (min, max, secrets.choice)

END = 0
BYTES = [bytes([value]) for value in range(256)]


class NothingFollows(Exception):
    """After some answer nothing may follow, not even the end."""


def is_slow(
    compile_grammar: Callable[[GrammarCompiler], CompiledGrammar],
    piece: Callable[[bytes], bytes] = bytes,
) -> bool:
    """Whether answers take too long in what is compiled for a vocabulary of bytes.

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
