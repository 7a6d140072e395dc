"""The vLLM engine as a plain class: prompts in, deltas out.

The import of vLLM takes seconds. Functions import vLLM when they need it, so that the process can
answer health checks before and during the import.
"""

import asyncio
import logging
import os
import tempfile
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pixtral_core.concurrency.daemon_threads import in_daemon_thread
from pixtral_core.errors import log_place
from pixtral_core.generation.logprobs import TokenLogprobs
from pixtral_core.generation.sampling import Sampling
from pixtral_core.model.checkpoint import read_language, read_spec
from pixtral_core.model.tokenizer_file import TEKKEN, find_tokenizer
from pixtral_decoder.embeddings.image_embedding import ImageEmbedding
from pixtral_decoder.engine.engine_args import EngineOptions, engine_args, prepare_process
from pixtral_decoder.engine.logprobs import from_vllm, prompt_pieces
from pixtral_decoder.engine.lora_adapters import BadAdapter, check_adapter
from pixtral_decoder.grammar.mask_budget import STRUCTURE_TOO_SLOW
from pixtral_decoder.request import ImagePlace, Prompt
from pixtral_decoder.vllm_hooks import start_failure, supported
from pixtral_decoder.vllm_hooks.continuation import Continuation, NotContinued
from pixtral_decoder.vllm_hooks.engine_shutdown import shut_down
from pixtral_decoder.vllm_hooks.image_cache import ImageCache
from pixtral_decoder.vllm_hooks.image_fan_out import send_images_once
from pixtral_decoder.vllm_hooks.last_characters import LastCharacters
from pixtral_decoder.vllm_hooks.plugin import ARCHITECTURE, HF_ARCHITECTURE
from pixtral_decoder.vllm_hooks.tensor_handover import Handover, encoder_of

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.multimodal.inputs import MultiModalKwargsItem
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

    from pixtral_decoder.grammar.grammar_check import StructureCheck

BEGIN_OF_SEQUENCE = 1
# vLLM's environment variable for the directory of its sockets.
SOCKETS_VARIABLE = "VLLM_RPC_BASE_PATH"


class FinishReason(Enum):
    STOP = "stop"
    LENGTH = "length"


# vLLM's finish reasons of a request that has not failed.
FINISHED = (None, "stop", "length")


class EngineDead(Exception):
    """The engine's process has ended, so the decoder cannot serve further requests."""


class EngineNotStarted(Exception):
    """The engine's process ended before it was ready. The message is the cause, on one line."""


class EngineFailed(Exception):
    """The engine failed on this request, and continues to run."""


class SamplingRefused(Exception):
    """vLLM does not take a sampling parameter; `field` is its path in GenerateRequest.

    `why` is for the client. It is empty if the reason is unknown.
    """

    def __init__(self, field: str, why: str = "") -> None:
        super().__init__(field)
        self.field = field
        self.why = why


class StructureTooSlow(Exception):
    """The engine ended the request, because its structured output took too much time.

    `field` is the structured output's path in GenerateRequest.
    """

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


class NothingFollows(Exception):
    """The structured output allows no token after those that the answer already has.

    `field` is the structured output's path in GenerateRequest.
    """

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


class ImagesNotHeld(Exception):
    """The engine lacks an image that the decoder did not send, and generated nothing."""


@dataclass(frozen=True, slots=True)
class Delta:
    """The part of an answer that one step of the engine added.

    Attributes:
        text: the new text; empty while a character is unfinished or a stop string is possible.
        token_ids: the tokens of the step.
        finish_reason: set in the last delta only.
        cached_tokens: prompt tokens from the prefix cache.
        queue_seconds: time from the request's arrival at the engine to its first step.
        logprobs: one element for each of `token_ids`, if the request asks for log-probabilities.
        index: index of the answer among those of the request.
        prompt_logprobs: the log-probabilities of the next part of the prompt, if the request asks
            for them. Deltas with this attribute come before all others, and have no tokens or text.
        stop_reason: the stop string or the id of the stop token that ended the answer.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    cached_tokens: int
    queue_seconds: float
    logprobs: tuple[TokenLogprobs, ...] = ()
    index: int = 0
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    stop_reason: str | int | None = None


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The parts of a started engine: vLLM's frontend, and the helpers beside it."""

    llm: "AsyncLLM"
    structures: "StructureCheck"
    images: ImageCache

    @classmethod
    def of(cls, llm: "AsyncLLM", structures: "StructureCheck") -> "_Loaded":
        return cls(llm, structures, ImageCache.of(llm))


@contextmanager
def _started_or_why() -> Iterator[None]:
    """Raises EngineNotStarted with the cause that a process of the engine has logged."""
    with start_failure.recorded() as cause:
        try:
            yield
        except Exception as error:
            if why := cause():
                raise EngineNotStarted(why) from error
            raise


class DecoderEngine:
    """One vLLM engine and its process. Its constructor sets environment variables for both.

    Call `start` and `shutdown` once each. `generate` may run any number of times at once, in one
    event loop.
    """

    def __init__(self, options: EngineOptions) -> None:
        prepare_process()
        self.options = options
        self._loaded: _Loaded | None = None
        self._handover = Handover()
        self._sockets: tempfile.TemporaryDirectory[str] | None = None
        self._tokenizer: tempfile.TemporaryDirectory[str] | None = None
        self._sampling_defaults: dict[str, Any] = {}
        self._adapters: dict[str, LoRARequest | None] = {"": None}

    async def start(self) -> None:
        """Loads the model and generates a token, in 10 s to minutes.

        Raises HookBroken if vLLM has changed, EngineNotStarted if the engine's process cannot run
        the model, and vLLM's own exceptions for a wrong model or machine.
        """
        # The default executor would delay the end of a process that must stop while it loads.
        await in_daemon_thread(self._load, "load-engine")
        self._sampling_defaults = self._llm.model_config.get_diff_sampling_param()
        for number, (name, path) in enumerate(self.options.adapters.items(), start=1):
            self._adapters[name] = await self._add_adapter(name, number, path)
        probe = Prompt("start", [BEGIN_OF_SEQUENCE], (), Sampling(max_tokens=1))
        async with aclosing(self.generate(probe, ())) as deltas:
            async for _ in deltas:
                pass

    @property
    def context_length(self) -> int:
        """The context of the started engine: at most the model's own."""
        return int(self._llm.model_config.max_model_len)

    @property
    def max_running(self) -> int:
        """How many answers the engine works on at once; the others wait."""
        return int(self._llm.vllm_config.scheduler_config.max_num_seqs)

    @property
    def has_priorities(self) -> bool:
        """Whether the engine orders waiting requests by priority."""
        return bool(self._llm.vllm_config.scheduler_config.policy == "priority")

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters, once the engine has started."""
        return tuple(name for name in self._adapters if name)

    @property
    def dead(self) -> bool:
        return self._loaded is not None and self._loaded.llm.errored

    async def wait_dead(self) -> None:
        """Returns once the engine's process has ended by itself."""
        # vLLM itself notices the end at once, but offers no event to wait for.
        while not self.dead:  # noqa: ASYNC110
            await asyncio.sleep(0.25)

    def holds(self, image: ImagePlace) -> bool:
        """Whether the engine's process has the embedding, so that the decoder need not send it."""
        return self._loaded is not None and self._loaded.images.has(image.identity)

    async def generate(
        self,
        prompt: Prompt,
        embeddings: Sequence[ImageEmbedding | None],
        *,
        resend: bool = False,
    ) -> AsyncGenerator[Delta]:
        """Deltas as the engine makes them; closing or cancelling stops the engine's work.

        `embeddings[i]` is the embedding of image i, or None if the engine has it. With `resend` the
        decoder sends all embeddings, even those that its record says the engine has.

        Raises:
            ImagesNotHeld: before the first delta; the caller can try again with all embeddings and
                `resend`.
            EngineDead, EngineFailed: at any time.
            SamplingRefused: before the first delta.
            StructureTooSlow, NothingFollows: at any time.
        """
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        from pixtral_decoder.engine.inputs import engine_input
        from pixtral_decoder.engine.sampling_params import copies, refused_field, vllm_sampling
        from pixtral_decoder.grammar.grammar_check import NotTaken
        from pixtral_decoder.vllm_hooks.refusals import REFUSALS, refused_parameter

        sampling, offered = prompt.sampling, ExitStack()
        try:
            parameters = vllm_sampling(sampling, self._sampling_defaults)
            alike = copies(sampling, parameters)
            if sampling.structured_output is not None and sampling.structured_output.values:
                await self._parts.structures.check(parameters)
            continuation: Continuation | None = None
            if prompt.generated:
                tokenizer = self._llm.tokenizer
                continuation = await Continuation.begin(prompt, parameters, tokenizer)
            offered.enter_context(self._handover.offering(embeddings))
            # No await from here until vLLM has sent the request: the engine's process stores images
            # in the order in which requests reach it, and the record on this side must have the
            # same order.
            items = self._items(prompt.images, embeddings, resend)
            stream = self._llm.generate(
                engine_input(prompt, items),
                parameters,
                prompt.request_id,
                lora_request=self._adapters[prompt.adapter],
                priority=prompt.priority,
            )
            may_miss_images, is_first = bool(prompt.images) and not resend, True
            endings: dict[int, LastCharacters] = {}
            async with aclosing(stream):
                async for output in stream:
                    offered.close()
                    # vLLM adds the prompt's log-probabilities to every choice. One copy is enough.
                    if is_first and sampling.prompt_logprobs is not None:
                        for delta in _prompt_deltas(output, sampling.prompt_logprobs):
                            yield delta
                    for completion in output.outputs:
                        if completion.finish_reason not in FINISHED:
                            may_miss_images &= is_first
                            raise _failure(sampling, completion, is_first, may_miss_images)
                        delta = _delta(output, completion, sampling)
                        if continuation is not None:
                            delta = _continued(delta, continuation, completion.finish_reason)
                        if completion.index not in endings:
                            ending = LastCharacters(self._llm.tokenizer, prompt.generated)
                            endings[completion.index] = ending
                        endings[completion.index].add(delta.token_ids)
                        if completion.finish_reason is not None:
                            delta = _ended(delta, endings[completion.index], completion, sampling)
                        yield delta
                        if delta.finish_reason is not None and completion.finish_reason is None:
                            # The engine does not know stop strings, and only stops when its stream
                            # closes.
                            return
                        for index in range(1, alike):
                            yield replace(delta, index=index)
                        is_first = False
        except EngineDeadError:
            raise EngineDead from None
        except EngineGenerateError as error:
            raise (EngineDead if self.dead else EngineFailed) from error
        except NotTaken as error:
            raise SamplingRefused(refused_field(error, sampling), str(error)) from error
        except NotContinued as error:
            raise SamplingRefused("generated_token_ids") from error
        except REFUSALS as error:
            # If vLLM does not name a parameter, the decoder itself may be at fault.
            level = logging.DEBUG if refused_parameter(error) else logging.WARNING
            log_place(error, "vLLM refuses a request", level)
            raise SamplingRefused(refused_field(error, sampling)) from error
        finally:
            offered.close()

    async def shutdown(self) -> None:
        """Ends the engine's process, in seconds. Requests that still run are aborted."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            await shut_down(loaded.llm)
            self._handover.close()
        for directory in (self._sockets, self._tokenizer):
            if directory is not None:
                directory.cleanup()

    @property
    def _parts(self) -> _Loaded:
        if self._loaded is None:
            raise RuntimeError("the engine has not been started")
        return self._loaded

    @property
    def _llm(self) -> "AsyncLLM":
        return self._parts.llm

    def _load(self) -> None:
        # With this variable, vLLM's processes would send traces of their own start. The decoder's
        # tracing has already read it.
        os.environ.pop("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", None)
        supported.check()
        arguments = engine_args(self.options, self._tokenizer_dir())

        from vllm import ModelRegistry
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        from pixtral_decoder.grammar.grammar_check import StructureCheck
        from pixtral_decoder.vllm_hooks import model

        # The plug-in registers the classes by name, and vLLM would start a process for 10 s to
        # inspect a named class. This process imports the classes anyway, and registers them.
        for name in (ARCHITECTURE, HF_ARCHITECTURE):
            ModelRegistry.register_model(name, getattr(model, name))
        structures = StructureCheck()
        with self._handover.listening() as connect, self._own_sockets(), _started_or_why():
            # vLLM derives the most tokens of a step from this usage context. No local variable may
            # refer to the frontend: vLLM may store an exception that keeps this frame alive, and
            # the frame would keep the frontend alive past its shutdown.
            self._loaded = _Loaded.of(
                AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.OPENAI_API_SERVER),
                structures,
            )
            connect(encoder_of(self._llm))
        send_images_once(self._llm, self._loaded.images)

    def _tokenizer_dir(self) -> Path | None:
        """A directory with the tokenizer, if vLLM would not find the tokenizer by itself.

        None if the tokenizer is where vLLM looks, in the model's directory.
        """
        model_dir = self.options.model_dir
        path = find_tokenizer(model_dir, read_spec(model_dir), read_language(model_dir).vocab_size)
        if path == model_dir / TEKKEN:
            return None
        # vLLM takes a directory, not a file, and makes its own choice among several tokenizers in
        # it. So the directory has this one only.
        self._tokenizer = tempfile.TemporaryDirectory(prefix="pixtral-tokenizer-")
        name = TEKKEN if path.suffix == ".json" else path.name
        (Path(self._tokenizer.name) / name).symlink_to(path.resolve())
        return Path(self._tokenizer.name)

    @contextmanager
    def _own_sockets(self) -> Iterator[None]:
        """Puts vLLM's sockets into a directory that `shutdown` removes.

        vLLM itself does not remove its sockets.
        """
        if SOCKETS_VARIABLE in os.environ:
            yield
            return
        self._sockets = tempfile.TemporaryDirectory(prefix="pixtral-vllm-")
        os.environ[SOCKETS_VARIABLE] = self._sockets.name
        try:
            yield
        finally:
            del os.environ[SOCKETS_VARIABLE]

    async def _add_adapter(self, name: str, number: int, path: Path) -> "LoRARequest":
        from vllm.lora.request import LoRARequest

        request = LoRARequest(name, number, str(path))
        try:
            await asyncio.to_thread(check_adapter, path)
            await self._llm.add_lora(request)
        except Exception as error:
            # Each fault raises another type of error, inside an error of vLLM.
            raise BadAdapter(f"{name}: {error}") from error
        return request

    def _items(
        self,
        images: Sequence[ImagePlace],
        embeddings: Sequence[ImageEmbedding | None],
        resend: bool,
    ) -> "list[MultiModalKwargsItem | None]":
        from pixtral_decoder.engine.inputs import embedding_item

        items = [None if each is None else embedding_item(each.tensor) for each in embeddings]
        cache = ImageCache(None) if resend else self._parts.images
        sent = cache.sent([image.identity for image in images], items)
        if sent is None:
            raise ImagesNotHeld
        return sent


def _failure(
    sampling: Sampling, completion: "CompletionOutput", is_first: bool, may_miss_images: bool
) -> Exception:
    structure = sampling.structured_output
    if structure is not None and completion.stop_reason == STRUCTURE_TOO_SLOW:
        return StructureTooSlow(structure.path)
    # A request that has passed all checks can fail in two ways: the engine's process has dropped an
    # image that the decoder's record contains, or it cannot compile or continue the structure.
    if may_miss_images:
        return ImagesNotHeld()
    if structure is None:
        return EngineFailed()
    return SamplingRefused(structure.path) if is_first else NothingFollows(structure.path)


def _delta(output: "RequestOutput", completion: "CompletionOutput", sampling: Sampling) -> Delta:
    reason = completion.finish_reason
    logprobs: tuple[TokenLogprobs, ...] = ()
    if sampling.logprobs is not None:
        # The type in vLLM also allows another form, which needs an option that the decoder never
        # sets.
        positions = cast("Sequence[Mapping[int, Any]]", completion.logprobs or ())
        logprobs = from_vllm(positions, sampling.logprobs)
    return Delta(
        text=completion.text,
        token_ids=tuple(completion.token_ids),
        finish_reason=None if reason is None else FinishReason(reason),
        cached_tokens=output.num_cached_tokens or 0,
        queue_seconds=_queue_seconds(output.metrics),
        logprobs=logprobs,
        index=completion.index,
        stop_reason=completion.stop_reason,
    )


def _prompt_deltas(output: "RequestOutput", count: int) -> Iterator[Delta]:
    cached, queue = output.num_cached_tokens or 0, _queue_seconds(output.metrics)
    for piece in prompt_pieces(output.prompt_logprobs or (), count):
        yield Delta("", (), None, cached, queue, prompt_logprobs=piece)


def _continued(delta: Delta, continuation: Continuation, finish_reason: str | None) -> Delta:
    piece = continuation.add(delta.token_ids, finish_reason)
    delta = replace(delta, text=piece.text, token_ids=tuple(piece.token_ids))
    if piece.stop_string is None:
        return delta
    return replace(delta, finish_reason=FinishReason.STOP, stop_reason=piece.stop_string)


def _ended(
    delta: Delta, ending: LastCharacters, completion: "CompletionOutput", sampling: Sampling
) -> Delta:
    is_engines = completion.finish_reason == "stop" and not isinstance(completion.stop_reason, str)
    if delta.finish_reason is FinishReason.STOP and not is_engines:
        # The answer ended at a stop string, and vLLM has already returned all text before it.
        return delta
    kept_back = ending.kept_back(behind_stop_token=is_engines)
    if not kept_back:
        return delta
    text = delta.text + kept_back
    # vLLM has not looked for stop strings in `kept_back`. A stop string that begins before
    # `kept_back` is also within `text`: until the end, vLLM keeps back any text that may be the
    # beginning of a stop string.
    ends = [at for stop in sampling.stop if (at := text.find(stop)) >= 0]
    if ends:
        return replace(delta, text=text[: min(ends)], finish_reason=FinishReason.STOP)
    return replace(delta, text=text)


def _queue_seconds(stats: Any) -> float:
    # vLLM has these times only if its metrics are on.
    return 0.0 if stats is None else max(stats.scheduled_ts - stats.queued_ts, 0.0)
