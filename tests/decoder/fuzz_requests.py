"""Requests to a decoder that are wrong, odd or hostile, and what stands in Redis for them."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pixtral.internal.v1 import decoder_pb2
from pixtral.v1 import chat_pb2
from pixtral_core.cache.embedding_key import EmbeddingKey, to_proto
from pixtral_core.cache.wire_format import DType
from pixtral_core.model.vision_spec import Grid, VisionSpec
from tests.decoder.fuzz_values import Values

MAX_TOKENS = 6
NUMBERS = (
    *(0.0, -0.0, 1.0, 0.5, 2.0, -1.0, 1e-9, 1e9),
    *(5e-324, 1e300, -1e300, math.nan, math.inf, -math.inf),
)
COUNTS = (0, 1, 2, 5, 20, 21, 64, 65, 4096, 2**31 - 1, 2**31, 2**32 - 1)
SEEDS = (0, -1, -2, 1, 2**31, 2**63 - 1, -(2**63))
TEXTS = (
    "",
    "a",
    "the",
    " ",
    "\n",
    "\u0000",
    "é",
    "\U0001f600",
    "[IMG]",
    "</s>",
    "x" * 5000,
    "\ufffd",
)
STRUCTURES = (
    ("json_schema", '{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}'),
    ("json_schema", '{"type":"array","items":{"enum":["a","b"]},"maxItems":2}'),
    ("json_schema", '{"type":"object"'),
    ("json_schema", '{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/a"}}}'),
    ("json_schema", '{"$ref":"http://127.0.0.1/schema"}'),
    ("json_schema", '{"not":{}}'),
    ("json_schema", "[]"),
    ("json_schema", "1e999"),
    ("json_schema", "[" * 3000 + "]" * 3000),
    ("json_schema", '{"type":"string","pattern":"(a|aa)+$"}'),
    ("json_schema", '{"type":"string","minLength":5,"maxLength":2}'),
    ("json_schema", '{"type":"integer","minimum":1e400}'),
    ("json_schema", "false"),
    ("regex", "[a-c]{1,3}"),
    ("regex", "("),
    ("regex", "(a*)*b"),
    ("regex", "a{1000000}"),
    ("regex", "\\p{Nope}"),
    ("regex", "(?=x)"),
    ("regex", "[^\\x00-\\uffff]"),
    ("grammar", 'root ::= "a" | "b" root'),
    ("grammar", "root ::= root"),
    ("grammar", 'root ::= other\nother ::= "x" missing'),
    ("grammar", 'root ::= ""'),
    ("grammar", 'start: "a" start | "b"'),
    ("grammar", "start: /(/"),
    ("grammar", "\u0000"),
    ("grammar", "::="),
)


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """A call: `payload` goes over the wire as it is, `values` are first stored under their keys."""

    payload: bytes
    values: Sequence[tuple[str, bytes | None]]


class Fuzzer:
    """The same seed makes the same calls."""

    def __init__(
        self,
        seed: int,
        *,
        spec: VisionSpec,
        dtype: DType,
        fingerprint: str,
        vocab_size: int,
        context_length: int,
    ) -> None:
        self._rng = random.Random(seed)
        self._spec = spec
        self._values = Values(self._rng, spec.width, dtype)
        self._fingerprint = fingerprint
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._number = 0
        # One that is stored well: names come back with other sizes, and in other requests.
        self._known: list[tuple[EmbeddingKey, Grid]] = []

    def next(self) -> Fuzzed:
        rng = self._rng
        self._number += 1
        request, values = self.good()
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            rng.choice(self._MUTATIONS)(self, request, values)
        payload = request.SerializeToString()
        if rng.random() < 0.05:
            payload = self._noise(payload)
        return Fuzzed(payload, values)

    def good(self) -> tuple[decoder_pb2.GenerateRequest, list[tuple[str, bytes | None]]]:
        """One that is to be answered, and what is to be stored for it."""
        rng = self._rng
        request = decoder_pb2.GenerateRequest(
            request_id=f"fuzz-{self._number}",
            sampling=chat_pb2.SamplingParams(max_tokens=rng.randint(1, MAX_TOKENS)),
        )
        request.prompt_token_ids.extend([1, 3])
        values: list[tuple[str, bytes | None]] = []
        for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 3))):
            if self._known and rng.random() < 0.4:
                key, grid = rng.choice(self._known)
            else:
                key, grid = self._key(), Grid(rng.randint(1, 12), rng.randint(1, 12))
                values.append((key.redis_key, self._values.good(key, grid)))
                self._known = [*self._known[-30:], (key, grid)]
            self._place(request, key, grid)
            request.prompt_token_ids.extend(self._words(rng.randint(0, 3)))
        request.prompt_token_ids.extend([*self._words(rng.randint(1, 5)), 4])
        return request, values

    def _place(self, request: decoder_pb2.GenerateRequest, key: EmbeddingKey, grid: Grid) -> None:
        request.images.add(
            key=to_proto(key), offset=len(request.prompt_token_ids), rows=grid.rows, cols=grid.cols
        )
        request.prompt_token_ids.extend(self._spec.placeholder(grid))

    def _key(self) -> EmbeddingKey:
        return EmbeddingKey(self._rng.randbytes(32), self._fingerprint, "fuzz")

    def _words(self, count: int) -> list[int]:
        return [self._rng.randrange(1000, self._vocab_size) for _ in range(count)]

    def _noise(self, payload: bytes) -> bytes:
        rng = self._rng
        noisy = bytearray(payload)
        for _ in range(rng.randint(1, 8)):
            noisy[rng.randrange(len(noisy))] = rng.getrandbits(8)
        return bytes(noisy[: rng.randrange(len(noisy))] if rng.random() < 0.5 else noisy)

    # The change that each makes to a request, or to what is stored for it.

    def _prompt(
        self, request: decoder_pb2.GenerateRequest, values: list[tuple[str, bytes | None]]
    ) -> None:
        rng, ids = self._rng, list(request.prompt_token_ids)
        at = rng.randrange(len(ids)) if ids else 0
        match rng.randrange(7):
            case 0:
                ids[at:at] = [rng.choice((10, 12, 13))] * rng.randint(1, 20)
            case 1:
                ids[at : at + 1] = [
                    rng.choice((self._vocab_size, 2**31 - 1, 2**31, 2**32 - 1, 0, 2))
                ]
            case 2:
                ids = []
            case 3:
                ids = self._words(self._context_length - rng.randint(-2, 3))
            case 4:
                del ids[at : at + rng.randint(1, 10)]
            case 5:
                rng.shuffle(ids)
            case 6:
                ids[at:at] = [rng.randrange(1000) for _ in range(5)]
        request.ClearField("prompt_token_ids")
        request.prompt_token_ids.extend(ids)

    def _image(
        self, request: decoder_pb2.GenerateRequest, values: list[tuple[str, bytes | None]]
    ) -> None:
        rng = self._rng
        if not request.images:
            return
        image = rng.choice(request.images)
        match rng.randrange(9):
            case 0:
                image.offset = rng.choice((0, (image.offset + 1) % 2**32, 2**31, 2**32 - 1))
            case 1:
                image.rows, image.cols = image.cols, image.rows
            case 2:
                image.rows = rng.choice((0, 1, (image.rows + 1) % 2**32, 65, 2**16, 2**32 - 1))
            case 3:
                image.cols = rng.choice((0, 1, (image.cols + 1) % 2**32, 65, 2**16, 2**32 - 1))
            case 4:
                image.key.image_sha256 = rng.randbytes(rng.choice((0, 1, 31, 32, 33)))
            case 5:
                image.key.fingerprint = rng.choice(("", "0" * 32, "é", "a:b", "x" * 1000))
            case 6:
                image.key.scope = rng.choice(("", "other", "a}b", "\u0000", "x" * 1000))
            case 7:
                image.encoder = rng.choice(
                    ("127.0.0.1:1", "localhost:0", ":", "[::1", "unix:/x", "\u0000", "a" * 300)
                )
            case 8:
                request.images.add().CopyFrom(image)

    def _same_key_of_another_size(
        self, request: decoder_pb2.GenerateRequest, values: list[tuple[str, bytes | None]]
    ) -> None:
        if self._known:
            key, grid = self._rng.choice(self._known)
            other = Grid(grid.cols + self._rng.randint(0, 2), grid.rows)
            self._place(request, key, other)
            request.prompt_token_ids.append(4)

    def _many_images(
        self, request: decoder_pb2.GenerateRequest, values: list[tuple[str, bytes | None]]
    ) -> None:
        if self._known:
            key, grid = self._rng.choice(self._known)
            for _ in range(self._rng.choice((4, 8, 40))):
                self._place(request, key, grid)
            request.prompt_token_ids.append(4)

    def _value(
        self, request: decoder_pb2.GenerateRequest, values: list[tuple[str, bytes | None]]
    ) -> None:
        """Another value for an image of a new name; what is known stays good."""
        key, grid = self._key(), Grid(self._rng.randint(1, 8), self._rng.randint(1, 8))
        values.append((key.redis_key, self._values.bad(key, grid)))
        self._place(request, key, grid)
        request.prompt_token_ids.append(4)

    def _sampling(
        self, request: decoder_pb2.GenerateRequest, values: list[tuple[str, bytes | None]]
    ) -> None:
        rng, sampling = self._rng, request.sampling
        for _ in range(rng.randint(1, 4)):
            match rng.randrange(11):
                case 0:
                    name = rng.choice(
                        (
                            "temperature",
                            "top_p",
                            "min_p",
                            "repetition_penalty",
                            "presence_penalty",
                            "frequency_penalty",
                        )
                    )
                    setattr(sampling, name, rng.choice(NUMBERS))
                case 1:
                    counts = (
                        "max_tokens",
                        "min_tokens",
                        "top_k",
                        "logprobs",
                        "prompt_logprobs",
                        "n",
                    )
                    name = rng.choice(counts)
                    setattr(sampling, name, rng.choice(COUNTS))
                case 2:
                    sampling.seed = rng.choice(SEEDS)
                case 3:
                    sampling.stop.extend(rng.choices(TEXTS, k=rng.choice((1, 2, 65))))
                case 4:
                    sampling.bad_words.extend(rng.choices(TEXTS, k=rng.choice((1, 2, 65))))
                case 5:
                    sampling.stop_token_ids.extend(self._ids(rng.choice((1, 3, 65))))
                case 6:
                    sampling.allowed_token_ids.extend(self._ids(rng.choice((1, 3, 1025))))
                case 7:
                    for token_id in self._ids(rng.choice((1, 3))):
                        sampling.logit_bias[token_id] = rng.choice((*NUMBERS, 100.0, -100.0))
                case 8:
                    sampling.ignore_eos = rng.random() < 0.5
                case 9:
                    self._structure(sampling.structured_output)
                case 10:
                    sampling.ClearField("max_tokens")

    def _ids(self, count: int) -> list[int]:
        odd = (0, 2, 10, 12, 13, self._vocab_size - 1, self._vocab_size, 2**31, 2**32 - 1)
        return [self._rng.choice((*odd, *self._words(9))) for _ in range(count)]

    def _structure(self, wanted: chat_pb2.StructuredOutput) -> None:
        rng = self._rng
        match rng.randrange(8):
            case 0:
                wanted.json_object = rng.random() < 0.8
            case 1:
                wanted.choice.values.extend(rng.choices(TEXTS, k=rng.choice((0, 1, 3, 70))))
            case 2:
                wanted.SetInParent()
            case _:
                name, text = rng.choice(STRUCTURES)
                setattr(wanted, name, text)

    def _names(
        self, request: decoder_pb2.GenerateRequest, values: list[tuple[str, bytes | None]]
    ) -> None:
        rng = self._rng
        request.request_id = rng.choice(("", "same", "same", "é\u0000", "x" * 128, "x" * 129))
        request.cache_salt = rng.choice(("", "a", "\u0000", "x" * 256, "x" * 257))
        request.adapter = rng.choice(("", "", "", "a", "\u0000"))
        request.priority = rng.choice((0, 0, 0, -1, 2**63 - 1))

    _MUTATIONS: tuple[
        Callable[["Fuzzer", decoder_pb2.GenerateRequest, list[tuple[str, bytes | None]]], None],
        ...,
    ] = (
        _prompt,
        _image,
        _image,
        _same_key_of_another_size,
        _many_images,
        _value,
        _value,
        _sampling,
        _sampling,
        _sampling,
        _sampling,
        _names,
    )
