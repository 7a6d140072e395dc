"""Tries a grammar byte by byte, and refuses one that takes too long.

What an answer may go on with is computed at every step of the engine, for all of its requests in
turn. It takes microseconds, but a grammar can be made so ambiguous that it takes longer with each
token: a second a step after a thousand of them, for everybody. And a grammar that does not compile,
though it could be read, ends the whole engine of a vLLM without pull request 47312.
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

# An ordinary grammar takes a tenth of it, one of the other kind many times as much.
MAX_CPU_SECONDS = limits.STRUCTURE_TRIAL_SECONDS.high
STEPS = 256

# By the first byte that may come, by the last and by any: an ambiguity hides from one of them.
WALKS: tuple[Callable[[Sequence[int]], int], ...] = (min, max, secrets.choice)

END = 0
BYTES = [bytes([value]) for value in range(256)]


def is_slow(compile_grammar: Callable[[GrammarCompiler], CompiledGrammar]) -> bool:
    """Whether an answer takes long to make of what is compiled for a vocabulary of bytes."""
    vocabulary = TokenizerInfo(BYTES, vocab_size=len(BYTES), stop_token_ids=[END])
    compiled = compile_grammar(GrammarCompiler(vocabulary, max_threads=1, cache_enabled=False))
    until = time.thread_time() + MAX_CPU_SECONDS
    return not all(_walk(compiled, choose, until) for choose in WALKS)


def _walk(compiled: CompiledGrammar, choose: Callable[[Sequence[int]], int], until: float) -> bool:
    matcher = GrammarMatcher(compiled)
    mask = allocate_token_bitmask(1, len(BYTES))
    for _ in range(STEPS):
        if time.thread_time() > until:
            return False
        matcher.fill_next_token_bitmask(mask, 0)
        words = mask[0].tolist()
        allowed = [i for i in range(1, len(BYTES)) if words[i // 32] >> (i % 32) & 1]
        if not allowed or not matcher.accept_token(choose(allowed)):
            break
    return True
