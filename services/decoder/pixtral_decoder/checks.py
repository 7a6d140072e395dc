"""The checks before the engine: what passes them cannot end it.

vLLM's engine dies, for everyone, of an embedding that does not fit its placeholders
(CVE-2025-62372) and of ids outside the vocabulary; and its caches believe the names they are
given. So nothing reaches it unchecked, whoever sent it.
"""

from dataclasses import dataclass
from functools import lru_cache

from pixtral_core.errors import InvalidRequest
from pixtral_core.generation.sampling import Sampling, Structure, StructuredOutput
from pixtral_core.model.vision_spec import Grid, VisionSpec
from pixtral_decoder.request import Prompt

MAX_REQUEST_ID = 128
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024
MAX_LOGPROBS = 20
# Of all tokens of a prompt together. vLLM makes an object of each where it serves all streams.
MAX_PROMPT_LOGPROBS = 1 << 17
MAX_TOKEN_IDS = 1024
MAX_BAD_WORDS = 64
MAX_BAD_WORD_CHARACTERS = 128
MAX_STRUCTURE_CHARACTERS = 1 << 17
MAX_CHOICES = 64
MAX_CACHE_SALT = 256
INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What the loaded model and engine take."""

    spec: VisionSpec
    vocab_size: int
    context_length: int
    max_images: int
    has_priorities: bool = False

    @property
    def max_grid_side(self) -> int:
        return -(-self.spec.max_image_size // self.spec.token_size)


def check_prompt(prompt: Prompt, limits: Limits) -> None:
    """Raises InvalidRequest with the field's path in GenerateRequest."""
    if not 0 < len(prompt.request_id) <= MAX_REQUEST_ID:
        raise InvalidRequest("request_id", f"must have 1 to {MAX_REQUEST_ID} characters")
    if len(prompt.cache_salt or "") > MAX_CACHE_SALT:
        raise InvalidRequest("cache_salt", f"must have at most {MAX_CACHE_SALT} characters")
    if not prompt.token_ids:
        raise InvalidRequest("prompt_token_ids", "must not be empty")
    if len(prompt.token_ids) + 1 > limits.context_length:
        raise InvalidRequest(
            "prompt_token_ids",
            f"{len(prompt.token_ids)} tokens leave no room for an answer in a context of "
            f"{limits.context_length}",
            reason="PROMPT_TOO_LONG",
        )
    if max(prompt.token_ids) >= limits.vocab_size:
        raise InvalidRequest(
            "prompt_token_ids", f"an id is outside the vocabulary of {limits.vocab_size}"
        )
    _check_places(prompt, limits)
    _check_generated(prompt, limits)
    check_sampling(prompt.sampling, limits, len(prompt.token_ids))
    if prompt.priority and not limits.has_priorities:
        raise InvalidRequest(
            "priority",
            "must be 0: the engine takes requests in the order of their arrival",
            reason="PRIORITY_NOT_SUPPORTED",
        )


def check_sampling(sampling: Sampling, limits: Limits, prompt_length: int) -> None:
    """Raises InvalidRequest with the field's path in GenerateRequest."""
    room = limits.context_length - prompt_length
    longest = room if sampling.max_tokens is None else sampling.max_tokens
    _check_range("max_tokens", sampling.max_tokens, 1, INT32_MAX)
    _check_range("min_tokens", sampling.min_tokens, 0, min(longest, room))
    _check_range("temperature", sampling.temperature, 0, 2)
    _check_range("top_p", sampling.top_p, 1e-9, 1)
    _check_range("top_k", sampling.top_k, 0, INT32_MAX)
    _check_range("min_p", sampling.min_p, 0, 1)
    _check_range("repetition_penalty", sampling.repetition_penalty, 1e-3, 1e3)
    _check_range("presence_penalty", sampling.presence_penalty, -2, 2)
    _check_range("frequency_penalty", sampling.frequency_penalty, -2, 2)
    _check_range("n", sampling.n, 1, MAX_CHOICES)
    _check_range("logprobs", sampling.logprobs, 0, MAX_LOGPROBS)
    most = min(MAX_LOGPROBS, MAX_PROMPT_LOGPROBS // prompt_length - 1)
    _check_range("prompt_logprobs", sampling.prompt_logprobs, 0, most)
    for name, most in _MOST_OF:
        if len(getattr(sampling, name)) > most:
            raise InvalidRequest(f"sampling.{name}", f"must hold at most {most}")
    # An id outside the vocabulary is an index outside the logits.
    for name in ("stop_token_ids", "allowed_token_ids"):
        for position, token_id in enumerate(getattr(sampling, name)):
            _check_range(f"{name}[{position}]", token_id, 0, limits.vocab_size - 1)
    for token_id, bias in sampling.logit_bias.items():
        _check_range("logit_bias", token_id, 0, limits.vocab_size - 1)
        _check_range("logit_bias", bias, -100, 100)
    if sampling.structured_output is not None:
        _check_structure(sampling.structured_output)
    for name, most in (("stop", MAX_STOP_CHARACTERS), ("bad_words", MAX_BAD_WORD_CHARACTERS)):
        for position, text in enumerate(getattr(sampling, name)):
            if not 0 < len(text) <= most:
                raise InvalidRequest(
                    f"sampling.{name}[{position}]", f"must have 1 to {most} characters"
                )


def check_fits(index: int, claimed: Grid, found: Grid) -> None:
    """Whether image `index`'s embedding is as large as the request says."""
    if claimed != found:
        raise InvalidRequest(
            f"images[{index}].rows",
            f"the embedding has {found.rows} rows and {found.cols} columns, not {claimed.rows} "
            f"and {claimed.cols}",
        )


def _check_places(prompt: Prompt, limits: Limits) -> None:
    """Every run of image tokens is claimed by exactly one image, and every image's is there."""
    if len(prompt.images) > limits.max_images:
        raise InvalidRequest(
            "images", f"must hold at most {limits.max_images}", reason="TOO_MANY_IMAGES"
        )
    spec, token_ids = limits.spec, prompt.token_ids
    free_from, claimed = 0, 0
    for index, image in enumerate(prompt.images):
        path, grid = f"images[{index}]", image.grid
        for name, side in (("rows", grid.rows), ("cols", grid.cols)):
            if not 0 < side <= limits.max_grid_side:
                raise InvalidRequest(f"{path}.{name}", f"must be 1 to {limits.max_grid_side}")
        if image.offset < free_from:
            raise InvalidRequest(
                f"{path}.offset", "must lie behind the image before, in the prompt's order"
            )
        if image.end > len(token_ids):
            raise InvalidRequest(f"{path}.offset", "the image's tokens end outside the prompt")
        if token_ids[image.offset : image.end] != _placeholder(spec, grid):
            raise InvalidRequest(
                f"{path}.offset", "the prompt has no image tokens of these rows and columns there"
            )
        free_from = image.end
        claimed += grid.placeholder_length
    image_token_ids = (spec.image_token_id, spec.image_break_token_id, spec.image_end_token_id)
    if sum(map(token_ids.count, image_token_ids)) != claimed:
        raise InvalidRequest("prompt_token_ids", "image tokens belong to none of the images")


def _check_generated(prompt: Prompt, limits: Limits) -> None:
    if not prompt.generated:
        return
    room = limits.context_length - len(prompt.token_ids)
    wanted = room if prompt.sampling.max_tokens is None else min(prompt.sampling.max_tokens, room)
    if len(prompt.generated) >= wanted:
        raise InvalidRequest("generated_token_ids", f"must be fewer than the {wanted} of an answer")
    if max(prompt.generated) >= limits.vocab_size:
        raise InvalidRequest(
            "generated_token_ids", f"an id is outside the vocabulary of {limits.vocab_size}"
        )
    sampling = prompt.sampling
    tells_logprobs = sampling.logprobs is not None or sampling.prompt_logprobs is not None
    if sampling.n > 1 or tells_logprobs or sampling.structured_output is not None:
        raise InvalidRequest("generated_token_ids", "cannot be continued with these parameters")


def _check_structure(wanted: StructuredOutput) -> None:
    # What it says is for vLLM to judge, off the event loop; not so how long that may take.
    needs_text = wanted.structure is not Structure.JSON_OBJECT
    if needs_text and not (wanted.values and all(wanted.values)):
        raise InvalidRequest(wanted.path, "must not be empty")
    if sum(map(len, wanted.values)) > MAX_STRUCTURE_CHARACTERS:
        raise InvalidRequest(
            wanted.path, f"must have at most {MAX_STRUCTURE_CHARACTERS} characters"
        )


_MOST_OF = (
    ("stop", MAX_STOPS),
    ("stop_token_ids", MAX_STOPS),
    ("logit_bias", MAX_TOKEN_IDS),
    ("bad_words", MAX_BAD_WORDS),
    ("allowed_token_ids", MAX_TOKEN_IDS),
)


def _check_range(name: str, value: float | None, least: float, most: float) -> None:
    # NaN fails every comparison, and so this.
    if value is not None and not least <= value <= most:
        raise InvalidRequest(f"sampling.{name}", f"must be {least:.15g} to {most:.15g}")


@lru_cache(maxsize=1024)
def _placeholder(spec: VisionSpec, grid: Grid) -> list[int]:
    return spec.placeholder(grid)
