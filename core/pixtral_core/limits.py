"""Every bound that a request can meet: all tiers, /openapi.json and docs/limits.md read it here.

The settings contain the bounds that an operator sets, and the checkpoint those of the model.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from pixtral_core.errors import InvalidRequest

INT32_MAX = 2**31 - 1
UINT32_MAX = 2**32 - 1
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class Limit(ABC):
    """A bound of the field at `path` in the protos, and of the fields in `also`.

    `[]` stands for the index or key of an entry.
    """

    path: str
    description: str
    also: tuple[str, ...] = field(default=(), kw_only=True)

    verb: ClassVar[str]

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path, *self.also)

    @abstractmethod
    def allows(self, value: float) -> bool: ...

    def check(self, value: float, path: str) -> None:
        """Raises InvalidRequest for the field at `path`."""
        if not self.allows(value):
            raise InvalidRequest(path, f"must {self.verb} {self}")


@dataclass(frozen=True, slots=True)
class Range(Limit):
    """A finite number from `low` to `high`; `low` itself is outside unless `low_inclusive`."""

    low: float
    high: float = math.inf
    low_inclusive: bool = True
    unit: str = ""

    verb: ClassVar[str] = "be"

    def allows(self, value: float) -> bool:
        # A NaN fails every comparison.
        is_above = value >= self.low if self.low_inclusive else value > self.low
        return is_above and value <= self.high and math.isfinite(value)

    def __str__(self) -> str:
        if (self.low, self.high) == (INT64_MIN, INT64_MAX):
            return "an integer of 64 bits"
        unit = f" {self.unit}" if self.unit else ""
        if self.low_inclusive:
            return f"{self.low} to {self.high}{unit}"
        return f"above {self.low}" + (f", up to {self.high}" if self.high < math.inf else "") + unit


@dataclass(frozen=True, slots=True)
class Count(Limit):
    """A number of entries, characters, bytes or levels, from `least` to `most`."""

    most: int
    least: int = 0
    of: str = "entries"

    verb: ClassVar[str] = "have"

    def allows(self, value: float) -> bool:
        return self.least <= value <= self.most

    def __str__(self) -> str:
        low = f"{self.least} to" if self.least else "at most"
        return f"{low} {self.most} {self.of}"


# The conversation.

IMAGE_URL_LENGTH = Count(
    "messages[].content[].image.url",
    "the URL of an image",
    4096,
    least=1,
    of="characters of an `https:` URL",
)
IMAGE_URL_REDIRECTS = Count(
    "messages[].content[].image.url",
    "redirects that the gateway follows to an image",
    3,
    of="redirects",
)
# The largest file that is accepted has 5,120 chunks if each chunk has 4 KiB.
IMAGE_BLOCKS = Count(
    "messages[].content[].image.data",
    "the parts into which a format divides its file",
    20_000,
    of="chunks or segments",
)
# The JPEG encoders that compress best write about twenty scans.
IMAGE_SCANS = Count(
    "messages[].content[].image.data", "passes over a progressive JPEG", 100, of="scans"
)
# An image of 64 million pixels may have 33 scans.
IMAGE_SCANNED_PIXELS = Count(
    "messages[].content[].image.data",
    "the work of decoding a progressive JPEG",
    1 << 31,
    of="pixels times scans",
)
# Pillow reads these bytes one by one.
IMAGE_JUNK_BYTES = Count(
    "messages[].content[].image.data",
    "bytes that belong to none of a JPEG's segments",
    1 << 16,
    of="bytes between segments",
)
TOOL_CALLS = Count("messages[].tool_calls", "tool calls of one message", 128)
TOOL_CALL_ID = Count(
    "messages[].tool_calls[].id",
    "the id by which a result refers to its tool call",
    256,
    least=1,
    of="characters",
    also=("messages[].tool_call_id",),
)
# mistral_common reads JSON recursively.
ARGUMENTS_DEPTH = Count(
    "messages[].tool_calls[].arguments",
    "nesting of objects and lists, here and in a tool's result",
    64,
    of="levels of JSON",
)

# Tools.

TOOLS = Count("tools", "functions that the model may call", 128)
# The gateway checks all of this against the schema of JSON Schema itself.
TOOLS_CHARACTERS = Count(
    "tools", "names, descriptions and parameters together", 1 << 17, of="characters in all"
)
TOOL_NAME = Count(
    "tools[].name",
    "letters, digits, underscores and dashes",
    64,
    least=1,
    of="characters",
    also=("messages[].tool_calls[].name",),
)
# The check of a schema compares each entry of such a list with every other.
SCHEMA_LIST = Count(
    "tools[].parameters",
    "a list in a schema may be longer if all its entries are texts, or all are numbers",
    64,
    of="entries in a list of mixed types",
)

# Sampling. SAMPLING has the limits of the scalar fields by the names of the fields.

MAX_TOKENS = Range("sampling.max_tokens", "tokens of an answer", 1, INT32_MAX)
MIN_TOKENS = Range("sampling.min_tokens", "tokens before an answer may end", 0, INT32_MAX)
TEMPERATURE = Range("sampling.temperature", "0 is greedy", 0, 2)
TOP_P = Range(
    "sampling.top_p", "total probability of the tokens to pick from", 0, 1, low_inclusive=False
)
TOP_K = Range("sampling.top_k", "tokens to pick from; 0 is all", 0, UINT32_MAX)
MIN_P = Range("sampling.min_p", "least probability, as a share of the likeliest token's", 0, 1)
REPETITION_PENALTY = Range(
    "sampling.repetition_penalty", "1 changes nothing", 0, low_inclusive=False
)
PRESENCE_PENALTY = Range("sampling.presence_penalty", "0 changes nothing", -2, 2)
FREQUENCY_PENALTY = Range("sampling.frequency_penalty", "0 changes nothing", -2, 2)
SEED = Range("sampling.seed", "-1 means no seed", INT64_MIN, INT64_MAX)
# vLLM's engine computes at most this many unless it is started with another `max_logprobs`.
LOGPROBS = Range("sampling.logprobs", "likeliest tokens to return for each token", 0, 20)
PROMPT_LOGPROBS = Range(
    "sampling.prompt_logprobs", "likeliest tokens to return for each token of the prompt", 0, 20
)
# vLLM makes an object of each log-probability, in the process that serves all streams.
PROMPT_LOGPROBS_IN_ALL = Count(
    "sampling.prompt_logprobs",
    "the sum over all tokens of a prompt, the tokens' own included",
    1 << 17,
    of="log-probabilities in all",
)
# The gateway keeps all of them in memory until the answer is complete.
LOGPROBS_IN_ALL = Count(
    "sampling.logprobs",
    "the sum over all choices of an answer that is not streamed, the tokens' own included",
    1 << 20,
    of="log-probabilities in all",
)
N = Range("sampling.n", "choices of one request", 1, 64)

# The decoder searches for each string after every token.
STOP = Count("sampling.stop", "strings that end an answer", 64)
STOP_LENGTH = Count("sampling.stop[]", "one such string", 1024, least=1, of="characters")
STOP_TOKEN_IDS = Count("sampling.stop_token_ids", "tokens that end an answer", 64)
LOGIT_BIAS = Count("sampling.logit_bias", "tokens with a bias", 1024)
LOGIT_BIAS_VALUE = Range(
    "sampling.logit_bias[]", "the amount added to one token's logit", -100, 100
)
# vLLM accepts 128 sequences of tokens, and one word becomes up to two sequences.
BAD_WORDS = Count("sampling.bad_words", "words that an answer must not contain", 64)
BAD_WORD_LENGTH = Count("sampling.bad_words[]", "one such word", 128, least=1, of="characters")
ALLOWED_TOKEN_IDS = Count("sampling.allowed_token_ids", "the only tokens to pick from", 1024)

# Structured output. A longer text takes longer to read and to compile. These limits are many times
# the lengths in use.
SCHEMA_CHARACTERS = Count(
    "sampling.structured_output.json_schema",
    "a JSON Schema",
    1 << 15,
    least=1,
    of="characters",
    also=("tools[].parameters",),
)
SCHEMA_DEPTH = Count(
    "sampling.structured_output.json_schema",
    "nesting of objects and lists in a JSON Schema",
    32,
    of="levels of JSON",
    also=("tools[].parameters",),
)
REGEX_CHARACTERS = Count(
    "sampling.structured_output.regex", "a regular expression", 1 << 12, least=1, of="characters"
)
GRAMMAR_CHARACTERS = Count(
    "sampling.structured_output.grammar",
    "a grammar in EBNF or Lark",
    1 << 14,
    least=1,
    of="characters",
)
CHOICES = Count(
    "sampling.structured_output.choice.values", "texts that an answer may be", 256, least=1
)
CHOICE_LENGTH = Count(
    "sampling.structured_output.choice.values[]", "one such text", 512, least=1, of="characters"
)
STRUCTURE_CHARACTERS = Count(
    "sampling.structured_output",
    "all choices together, or the structure that the gateway makes of tools that the model must "
    "call",
    1 << 17,
    of="characters of a structure",
    also=("tools",),
)
# Large schemas in use take a tenth of either time.
STRUCTURE_READ_SECONDS = Range(
    "sampling.structured_output",
    "time to read a schema, expression or grammar",
    0,
    0.1,
    unit="seconds of a processor",
)
STRUCTURE_TRIAL_SECONDS = Range(
    "sampling.structured_output",
    "time to write trial answers",
    0,
    0.1,
    unit="seconds of a processor",
)
STRUCTURE_WAIT_SECONDS = Range(
    "sampling.structured_output",
    "time to read the structure and to write the trial answers",
    0,
    30,
    unit="seconds of time",
)
# Large schemas in use take half of this time.
STRUCTURE_STEP_SECONDS = Range(
    "sampling.structured_output",
    "time for each token of an answer; the tenant's budget pays for more",
    0,
    0.002,
    unit="seconds of a processor",
)
# The budget grows again by a twentieth of the time that passes.
STRUCTURE_BUDGET_SECONDS = Range(
    "sampling.structured_output",
    "the tenant's budget; a request that spends all of it ends",
    0,
    1,
    unit="seconds of a processor",
)

# A request as a whole.

PRIORITY = Range("priority", "requests with a lower number go first", INT64_MIN, INT64_MAX)
MESSAGE_BYTES = Count("request", "a gRPC message, or an HTTP body", 64 << 20, of="bytes")
# Parsing a body blocks the gateway: about a microsecond for each value, and a tenth of that for
# each escape. A text without Latin letters may have an escape for each character.
BODY_VALUES = Count("request", "over HTTP", 1 << 16, of="values in the JSON of a body")
BODY_ESCAPES = Count("request", "over HTTP", 1 << 20, of="escaped characters in a body")
# vLLM has the same limit.
PROMPTS = Count("prompt", "prompts of one request to `/v1/completions`", 1024, least=1)
HEAD_BYTES = Count("request", "over HTTP", 64 << 10, of="bytes of a head")

# Fields that the gateway itself adds to its request to the decoder.

REQUEST_ID = Count("request_id", "the gateway's id of a request", 128, least=1, of="characters")
CACHE_SALT = Count("cache_salt", "the tenant's name, from the gateway", 256, of="characters")

SAMPLING: Mapping[str, Range] = {
    each.path.removeprefix("sampling."): each
    for each in (
        MAX_TOKENS,
        MIN_TOKENS,
        TEMPERATURE,
        TOP_P,
        TOP_K,
        MIN_P,
        REPETITION_PENALTY,
        PRESENCE_PENALTY,
        FREQUENCY_PENALTY,
        SEED,
        LOGPROBS,
        PROMPT_LOGPROBS,
        N,
    )
}
# All limits above, by name and in this order.
TABLE: Mapping[str, Limit] = {
    name: each for name, each in dict(globals()).items() if isinstance(each, Limit)
}
