"""One replica of each tier."""

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeAlias

import simpy

from bench.simulation.arrivals import Request
from bench.simulation.processor import Processor
from bench.simulation.times import ServiceTimes
from pixtral_decoder.prompt_work import PromptWork
from pixtral_gateway.upstream.decoder_work import DecoderWork

Work: TypeAlias = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, slots=True)
class Limits:
    """The tiers' settings of docs/scaling.md, except that a decoder's queue has a fixed length."""

    permits: int = 256
    batch_patches: int = 16_384
    queue_patches: int = 262_144
    decode_threads: int = 8
    max_running: int = 64
    max_waiting: int = 64


class Replica:
    """A process; `in_flight` counts its requests, `host_seconds` its CPU seconds so far."""

    def __init__(self, env: simpy.Environment, address: str) -> None:
        self.env = env
        self.address = address
        self.in_flight = 0
        self.host_seconds = 0.0


class Gateway(Replica):
    def __init__(
        self, env: simpy.Environment, address: str, times: ServiceTimes, processor: Processor
    ) -> None:
        super().__init__(env, address)
        self._times = times
        self._processor = processor
        # This gateway's view of the work of each decoder.
        self.works: defaultdict[str, DecoderWork] = defaultdict(
            lambda: DecoderWork(clock=lambda: env.now)
        )

    def prepare(self, request: Request) -> Work:
        """All work of a request outside of encoder and engine."""
        has_image = request.image is not None
        seconds = self._times.gateway_seconds + has_image * self._times.gateway_image_seconds
        self.host_seconds += seconds
        yield self._processor.work(seconds)


class Encoder(Replica):
    """Counts what the metrics of its autoscaling count."""

    def __init__(
        self,
        env: simpy.Environment,
        address: str,
        times: ServiceTimes,
        processor: Processor,
        limits: Limits,
        card: Processor,
    ) -> None:
        super().__init__(env, address)
        self._times = times
        self._processor = processor
        self._card = card
        self._limits = limits
        self._decoding = simpy.Resource(env, limits.decode_threads)
        self._flights: dict[int, simpy.Event] = {}
        self._waiting: deque[tuple[int, simpy.Event]] = deque()
        self._woken = env.event()
        self.queued_patches = 0
        self.encoded_images = 0
        self.encoded_patches = 0
        self.tower_seconds = 0.0
        env.process(self._run())

    def has_room(self, image: int, patches: int) -> bool:
        is_alone = self.queued_patches == 0 or image in self._flights
        return is_alone or self.queued_patches + patches <= self._limits.queue_patches

    def encode(self, image: int, patches: int) -> Work:
        """Encodes an image, or waits for the run that encodes it already."""
        if image in self._flights:
            yield self._flights[image]
            return
        flight = self._flights[image] = self.env.event()
        self.queued_patches += patches
        with self._decoding.request() as turn:
            yield turn
            seconds = self._times.preprocess(patches)
            self.host_seconds += seconds
            yield self._processor.work(seconds)
        embedded = self.env.event()
        self._waiting.append((patches, embedded))
        if not self._woken.triggered:
            self._woken.succeed()
        yield embedded
        self.queued_patches -= patches
        del self._flights[image]
        flight.succeed()

    def _run(self) -> Work:
        while True:
            if not self._waiting:
                self._woken = self.env.event()
                yield self._woken
            batch = [self._waiting.popleft()]
            room = self._limits.batch_patches - batch[0][0]
            while self._waiting and self._waiting[0][0] <= room:
                batch.append(self._waiting.popleft())
                room -= batch[-1][0]
            patches = sum(each for each, _ in batch)
            began = self.env.now
            yield self._card.work(self._times.tower(patches), self._times.tower_cores)
            self.tower_seconds += self.env.now - began
            self.encoded_patches += patches
            self.encoded_images += len(batch)
            for _, embedded in batch:
                embedded.succeed()


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in the engine.

    Attributes:
        request: the request.
        first: the event of its first token.
        done: the event of its last token.
        prompt_left: prompt tokens left to compute.
        output_left: tokens left to generate.
        extra: seconds that its first step takes beyond its tokens.
        cached: prompt tokens that the prefix cache had.
    """

    request: Request
    first: simpy.Event
    done: simpy.Event
    prompt_left: int = 0
    output_left: int = 0
    extra: float = 0.0
    cached: int = 0


class Decoder(Replica):
    """Continuous batching with chunked prefill and a prefix cache of images and turns, as in vLLM.

    With `encodes` it is stock vLLM: the engine's step encodes images that the cache lacks.
    """

    def __init__(
        self,
        env: simpy.Environment,
        address: str,
        times: ServiceTimes,
        processor: Processor,
        limits: Limits,
        *,
        is_shared: bool = False,
        encodes: bool = False,
    ) -> None:
        super().__init__(env, address)
        self._times = times
        self._processor = processor
        self._limits = limits
        self._is_shared = is_shared
        self._encodes = encodes
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        # Tokens by part: of all cached parts, and of the parts of running requests. Requests that
        # share a part need its tokens once.
        self._prefixes: OrderedDict[str, int] = OrderedDict()
        self._used: Counter[str] = Counter()
        self._prefix_tokens = 0
        self._used_tokens = 0
        self._own_tokens = 0
        self._woken = env.event()
        self.busy_seconds = 0.0
        self.work = PromptWork(clock=lambda: env.now)
        self.prefix_hits = 0
        env.process(self._run())

    @property
    def has_room(self) -> bool:
        return self.in_flight < self._limits.max_running + self._limits.max_waiting

    @property
    def kv_use(self) -> float:
        return min(1.0, (self._own_tokens + self._used_tokens) / self._times.kv_tokens)

    def generate(self, request: Request) -> Sequence:
        sequence = Sequence(request, self.env.event(), self.env.event())
        self.waiting.append(sequence)
        if not self._woken.triggered:
            self._woken.succeed()
        return sequence

    def _run(self) -> Work:
        while True:
            if not (self.running or self.waiting):
                self._woken = self.env.event()
                yield self._woken
                continue
            began = self.env.now
            yield from self._step()
            self.busy_seconds += self.env.now - began

    def _admit(self) -> Sequence | None:
        """Admits the next waiting request if there is room for it."""
        if not self.waiting or len(self.running) >= self._limits.max_running:
            return None
        request = self.waiting[0].request
        new = sum(tokens for name, tokens in request.parts[:-1] if not self._used[name])
        tokens = self._own_tokens + self._used_tokens + new + _own(request)
        if self.running and tokens > self._times.kv_tokens:
            return None
        sequence = self.waiting.popleft()
        self._place(sequence)
        self.running.append(sequence)
        return sequence

    def _place(self, sequence: Sequence) -> None:
        request = sequence.request
        sequence.output_left = request.output_tokens
        # The last part belongs to this request alone.
        parts = request.parts[:-1]
        known = list(takewhile(lambda part: part[0] in self._prefixes, parts))
        sequence.cached = sum(tokens for _, tokens in known)
        sequence.prompt_left = request.prompt_tokens - sequence.cached
        if request.image is not None:
            self.prefix_hits += bool(known)
            cost = self._times.embedding(request.patches)
            if self._encodes:
                cost = self._times.stock_image_seconds * request.patches / 4096
            sequence.extra = 0.0 if known else cost
        self._own_tokens += _own(request)
        for name, tokens in parts:
            self._used_tokens += 0 if self._used[name] else tokens
            self._used[name] += 1
        self._keep(parts)

    def _leave(self, request: Request) -> None:
        self._own_tokens -= _own(request)
        for name, tokens in request.parts[:-1]:
            self._used[name] -= 1
            self._used_tokens -= 0 if self._used[name] else tokens
        if request.becomes:
            self._keep([(request.becomes, _own(request))])

    def _keep(self, parts: Iterable[tuple[str, int]]) -> None:
        for name, tokens in parts:
            self._prefix_tokens += 0 if name in self._prefixes else tokens
            self._prefixes[name] = tokens
            self._prefixes.move_to_end(name)
        while self._prefix_tokens + self._own_tokens > self._times.kv_tokens:
            oldest = next((name for name in self._prefixes if not self._used[name]), None)
            if oldest is None:
                return
            self._prefix_tokens -= self._prefixes.pop(oldest)

    def _step(self) -> Work:
        """Schedules like vLLM: running requests first, then waiting ones while tokens are left."""
        decoding = [each for each in self.running if not each.prompt_left]
        prefilling = deque(each for each in self.running if each.prompt_left)
        room = self._times.step_tokens - len(decoding)
        taken: list[tuple[Sequence, int]] = []
        while room > 0:
            sequence = prefilling.popleft() if prefilling else self._admit()
            if sequence is None:
                break
            taken.append((sequence, min(room, sequence.prompt_left)))
            room -= taken[-1][1]
        if not taken:
            yield from self._decode(decoding)
            return
        seconds = self._times.step(sum(tokens for _, tokens in taken), len(decoding))
        for sequence, _ in taken:
            seconds += sequence.extra
            sequence.extra = 0.0
        yield self._processor.work(seconds)
        for sequence, tokens in taken:
            sequence.prompt_left -= tokens
        self._emit(decoding, 1)
        self._emit([each for each, _ in taken if not each.prompt_left], 1)

    def _decode(self, decoding: list[Sequence]) -> Work:
        """Runs steps without events in one go, until a request arrives."""
        seconds = self._times.step(0, len(decoding))
        if self._is_shared:
            yield self._processor.work(seconds)
            self._emit(decoding, 1)
            return
        most = min(each.output_left for each in decoding)
        began = self.env.now
        self._woken = self.env.event()
        yield self.env.timeout(most * seconds) | self._woken
        steps = min(most, max(1, -int(-(self.env.now - began) // seconds)))
        rest = began + steps * seconds - self.env.now
        if rest > 0:
            yield self.env.timeout(rest)
        self._emit(decoding, steps)

    def _emit(self, sequences: list[Sequence], tokens: int) -> None:
        for sequence in sequences:
            if not sequence.first.triggered:
                sequence.first.succeed()
            sequence.output_left -= tokens
            if sequence.output_left <= 0:
                self.running.remove(sequence)
                self._leave(sequence.request)
                sequence.done.succeed()


def _own(request: Request) -> int:
    """Tokens that no other request shares."""
    return request.text_tokens + request.output_tokens
