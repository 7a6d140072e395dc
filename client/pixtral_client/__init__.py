"""The Python SDK of pixtral-serve: sync and async clients of the gateway."""

from importlib.metadata import version

from pixtral_client.client import AsyncClient, Client
from pixtral_client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    PixtralError,
    Unavailable,
    Violation,
)
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

__all__ = [
    "AsyncClient",
    "AsyncStream",
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
    "Overloaded",
    "PixtralError",
    "Sampling",
    "Stream",
    "StructuredOutput",
    "Timings",
    "Tls",
    "TokenCount",
    "TokenLogprobs",
    "ToolCall",
    "Unavailable",
    "UploadedImage",
    "Usage",
    "Violation",
    "__version__",
]

__version__ = version("pixtral-serve")
