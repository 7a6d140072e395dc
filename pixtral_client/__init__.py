"""Client of pixtral-serve: a Python SDK and the `pixtral-serve` command."""

from pixtral_client.client import AsyncClient, AsyncStream, Client, Stream
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
    Usage,
)
from pixtral_client.stack import Progress, Stack, StackError
from pixtral_client.standalone import local, pixtral_stack

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
    "Progress",
    "Sampling",
    "Stack",
    "StackError",
    "Stream",
    "StructuredOutput",
    "Timings",
    "Tls",
    "TokenCount",
    "TokenLogprobs",
    "ToolCall",
    "Unavailable",
    "Usage",
    "Violation",
    "local",
    "pixtral_stack",
]
