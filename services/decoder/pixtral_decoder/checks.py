"""Checks each request before the engine gets it, so that no request can end the engine.

An embedding that does not fit its placeholders (CVE-2025-62372) or an id outside the vocabulary
ends vLLM's engine, and with it the requests of all clients. The engine's caches also trust the keys
of a request. So the decoder checks every request, even one from a gateway.
"""

from dataclasses import dataclass
from functools import lru_cache

from pixtral_core import limits as bounds
from pixtral_core.errors import InvalidRequest
from pixtral_core.generation.sampling import Sampling, Structure, StructuredOutput
from pixtral_core.model.vision_spec import Grid, VisionSpec
from pixtral_decoder.request import Prompt


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of the loaded model and engine."""

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
    bounds.REQUEST_ID.check(len(prompt.request_id), "request_id")
    bounds.CACHE_SALT.check(len(prompt.cache_salt or ""), "cache_salt")
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
    for name, allowed in bounds.SAMPLING.items():
        value = getattr(sampling, name)
        if value is not None:
            allowed.check(value, f"sampling.{name}")
    room = limits.context_length - prompt_length
    longest = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
    if sampling.min_tokens is not None and sampling.min_tokens > longest:
        raise InvalidRequest("sampling.min_tokens", f"must be at most {longest}")
    if sampling.prompt_logprobs is not None:
        in_all = prompt_length * (1 + sampling.prompt_logprobs)
        bounds.PROMPT_LOGPROBS_IN_ALL.check(in_all, "sampling.prompt_logprobs")
    for count in _COUNTS:
        count.check(len(getattr(sampling, count.path.removeprefix("sampling."))), count.path)
    for name in ("stop_token_ids", "allowed_token_ids"):
        for position, token_id in enumerate(getattr(sampling, name)):
            _check_token_id(f"{name}[{position}]", token_id, limits)
    for token_id, bias in sampling.logit_bias.items():
        _check_token_id("logit_bias", token_id, limits)
        bounds.LOGIT_BIAS_VALUE.check(bias, "sampling.logit_bias")
    if sampling.structured_output is not None:
        _check_structure(sampling.structured_output)
    for position, text in enumerate(sampling.stop):
        bounds.STOP_LENGTH.check(len(text), f"sampling.stop[{position}]")
    for position, text in enumerate(sampling.bad_words):
        bounds.BAD_WORD_LENGTH.check(len(text), f"sampling.bad_words[{position}]")


def check_fits(index: int, claimed: Grid, found: Grid) -> None:
    """Raises InvalidRequest if the embedding of image `index` has another size than the request
    says."""
    if claimed != found:
        raise InvalidRequest(
            f"images[{index}].rows",
            f"the embedding has {found.rows} rows and {found.cols} columns, not {claimed.rows} "
            f"and {claimed.cols}",
        )


def _check_places(prompt: Prompt, limits: Limits) -> None:
    """Checks that every image has its run of image tokens, and that no other image tokens exist."""
    if len(prompt.images) > limits.max_images:
        raise InvalidRequest(
            "images", f"must have at most {limits.max_images}", reason="TOO_MANY_IMAGES"
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
                f"{path}.offset", "must come after the previous image in the prompt"
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
        raise InvalidRequest("prompt_token_ids", "image tokens of the prompt belong to no image")


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
    # StructureCheck reads the content later, in a thread. The limit on the size bounds the time
    # that it takes.
    needs_text = wanted.structure is not Structure.JSON_OBJECT
    if needs_text and not (wanted.values and all(wanted.values)):
        raise InvalidRequest(wanted.path, "must not be empty")
    bounds.STRUCTURE_CHARACTERS.check(sum(map(len, wanted.values)), wanted.path)


_COUNTS = (
    bounds.STOP,
    bounds.STOP_TOKEN_IDS,
    bounds.LOGIT_BIAS,
    bounds.BAD_WORDS,
    bounds.ALLOWED_TOKEN_IDS,
)


def _check_token_id(name: str, token_id: int, limits: Limits) -> None:
    # vLLM would use an id outside the vocabulary as an index outside the logits.
    if not 0 <= token_id < limits.vocab_size:
        raise InvalidRequest(f"sampling.{name}", f"must be 0 to {limits.vocab_size - 1}")


@lru_cache(maxsize=1024)
def _placeholder(spec: VisionSpec, grid: Grid) -> list[int]:
    return spec.placeholder(grid)
