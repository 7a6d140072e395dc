"""The Python SDK of pixtral-serve: sync and async clients of the gateway."""

from importlib.metadata import version

from pixtral_client.async_client import AsyncClient
from pixtral_client.batch import BatchProgress, Outcome
from pixtral_client.client import Client
from pixtral_client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    PixtralError,
    Unavailable,
    Violation,
)
from pixtral_client.functions import ToolError, ToolRun, TooManyRounds
from pixtral_client.requests import Options, Sampling, StructuredOutput, Tls
from pixtral_client.results import (
    Choice,
    Completion,
    Delta,
    ImageReport,
    Logprob,
    Model,
    Timings,
    TokenCount,
    TokenLogprobs,
    ToolCall,
    UploadedImage,
    Usage,
)
from pixtral_client.streams import AsyncStream, Stream
from pixtral_client.structured import AnswerNotParsed, ParsedCompletion

__all__ = [
    "AnswerNotParsed",
    "AsyncClient",
    "AsyncStream",
    "BatchProgress",
    "Choice",
    "Client",
    "Completion",
    "DeadlineExceeded",
    "Delta",
    "ImageReport",
    "InvalidRequest",
    "Logprob",
    "Model",
    "NotFound",
    "Options",
    "Outcome",
    "Overloaded",
    "ParsedCompletion",
    "PixtralError",
    "Sampling",
    "Stream",
    "StructuredOutput",
    "Timings",
    "Tls",
    "TokenCount",
    "TokenLogprobs",
    "TooManyRounds",
    "ToolCall",
    "ToolError",
    "ToolRun",
    "Unavailable",
    "UploadedImage",
    "Usage",
    "Violation",
    "__version__",
]

__version__ = version("pixtral-serve")
