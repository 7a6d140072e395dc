"""Client of pixtral-serve: a Python SDK and the `pixtral-serve` command."""

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
from pixtral_client.stack import Progress, Stack, StackError
from pixtral_client.standalone import local, pixtral_stack
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
    "UploadedImage",
    "Usage",
    "Violation",
    "local",
    "pixtral_stack",
]
