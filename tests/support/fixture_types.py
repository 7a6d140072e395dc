"""Types of fixtures, for tests that use them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from models.random_checkpoint import RandomSpec

Tokenizer = MistralTokenizer[Any, Any, Any, Any, Any]


Checkpoints = Callable[[RandomSpec], Path]
