"""Reads each tokenizer once in a test run."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mistral_common.tokens.tokenizers.tekken import Tekkenizer


@contextmanager
def read_once() -> Iterator[None]:
    """Within the block, `Tekkenizer.from_file` reads each file once, by path and content.

    Reading takes a second or two, most of it for the vocabulary, which does not change. The
    `MistralTokenizer` around it, which the gateway changes, is still made anew each time.
    """
    read = Tekkenizer.from_file
    known: dict[tuple[Path, bytes], Tekkenizer] = {}

    def from_file(path: str | Path) -> Tekkenizer:
        try:
            name = (Path(path), hashlib.sha256(Path(path).read_bytes()).digest())
        except OSError:
            return read(path)
        if name not in known:
            known[name] = read(path)
        return known[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tekkenizer, "from_file", from_file)
        yield
