"""A request to the decoder, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass

from pixtral_core.cache.embedding_key import EmbeddingKey
from pixtral_core.generation.sampling import Sampling
from pixtral_core.model.vision_spec import Grid


@dataclass(frozen=True, slots=True)
class ImagePlace:
    """An image and its place in the prompt: `grid.placeholder_length` tokens at `offset`.

    `encoder` is the host:port of an encoder that has the embedding, or empty.
    """

    key: EmbeddingKey
    offset: int
    grid: Grid
    encoder: str = ""

    @property
    def identity(self) -> str:
        """The image's name in the engine's caches.

        The name includes the grid, so that the engine never combines a cached embedding with
        placeholders of another size, which would end the engine.
        """
        return f"{self.key.identity}-{self.grid.rows}x{self.grid.cols}"

    @property
    def end(self) -> int:
        return self.offset + self.grid.placeholder_length


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens that the engine continues, and the parameters for it.

    Attributes:
        request_id: an id that is unique among running requests.
        token_ids: text, control and image tokens.
        images: images in the order of their placeholders.
        sampling: parameters for the whole answer, including `generated`.
        cache_salt: prompts share the engine's prefix cache only if their salts are equal.
        generated: tokens of the answer that another decoder has already made.
        priority: a lower number goes first, if the engine schedules by priority.
        adapter: name of the LoRA adapter to use; empty for the model itself.
        new_tokens: number of tokens that the gateway expects the engine to compute; None means all
            tokens.
    """

    request_id: str
    token_ids: list[int]
    images: Sequence[ImagePlace]
    sampling: Sampling
    cache_salt: str | None = None
    generated: Sequence[int] = ()
    priority: int = 0
    adapter: str = ""
    new_tokens: int | None = None

    @property
    def expected_tokens(self) -> int:
        """The expected number of tokens to compute before the first new token of the answer."""
        every = len(self.token_ids) + len(self.generated)
        return every if self.new_tokens is None else min(self.new_tokens, every)

    @property
    def engine_token_ids(self) -> list[int]:
        """The tokens that the engine continues."""
        return [*self.token_ids, *self.generated] if self.generated else self.token_ids
