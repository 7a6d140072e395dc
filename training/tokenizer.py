"""The tokenizer of the small model: Tekken with few of its merges.

Each capital and each digit is a token, so that the model reads a printed word letter by letter. The
words of questions and answers are whole tokens.
"""

import base64
import json
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

SPECIAL_TOKENS = 1000
BYTES = 256

_WORDS: Final = (
    "What|How|Where|Which|There|It|The|Is|Bar|Both|Yes|No|"
    " the| is| are| in| at| a| of| or| no| has| many| more| there| says| shows| and| do|"
    " shape| shapes| circle| circles| square| squares| triangle| triangles| star| stars|"
    " diamond| diamonds| cross| crosses| heart| hearts| ring| rings|"
    " colour| red| orange| yellow| green| blue| purple| pink| black|"
    " top| bottom| left| right| centre| above| below|"
    " word| number| printed| value| bar| bars| highest| lowest| picture| pictures| first| second"
)
WHOLE_WORDS: Final = tuple(_WORDS.split("|"))


def write_tokenizer(path: Path, *, vocab_size: int, max_image_size: int) -> None:
    """Reduces mistral_common's `tekken_240911.json` to `vocab_size` ids, and writes it to `path`.

    The special tokens, their ids, the pattern and the version are unchanged.
    """
    source = resources.files("mistral_common") / "data" / "tekken_240911.json"
    tekken: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    entries = tekken["vocab"][: tekken["config"]["default_vocab_size"] - SPECIAL_TOKENS]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in entries}
    plain = [rank for token, rank in ranks.items() if rank >= BYTES and _keeps(token)]
    needed: set[int] = set()
    for word in WHOLE_WORDS:
        _merges(word.encode(), ranks, needed)
    room = vocab_size - SPECIAL_TOKENS - BYTES
    others = [rank for rank in sorted(plain) if rank not in needed][: room - len(needed)]
    kept = [*range(BYTES), *sorted([*needed, *others])]
    tekken["vocab"] = [{**entries[rank], "rank": at} for at, rank in enumerate(kept)]
    tekken["config"]["num_vocab_tokens"] = len(kept)
    tekken["config"]["default_vocab_size"] = SPECIAL_TOKENS + len(kept)
    tekken["image"]["max_image_size"] = max_image_size
    path.write_text(json.dumps(tekken), encoding="utf-8")


def _keeps(token: bytes) -> bool:
    """Whether the token is printable ASCII without a capital after its first character."""
    if not all(0x20 <= byte < 0x7F for byte in token):
        return False
    return not any(character.isupper() for character in token.decode("ascii")[1:])


def _merges(word: bytes, ranks: dict[bytes, int], into: set[int]) -> None:
    """Adds the ranks of all tokens that byte-pair encoding passes through on its way to `word`."""
    parts = [bytes([byte]) for byte in word]
    while len(parts) > 1:
        pairs = [a + b for a, b in pairwise(parts)]
        known = [(ranks[pair], at) for at, pair in enumerate(pairs) if pair in ranks]
        if not known:
            return
        rank, at = min(known)
        parts[at : at + 2] = [pairs[at]]
        into.add(rank)
