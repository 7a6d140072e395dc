"""The common parts of both clients: how they make requests, and how a `map` ends a try."""

from collections.abc import (
    Callable,
    Mapping,
)
from typing import Any

import grpc

from pixtral.v1 import chat_pb2
from pixtral_client.batch import (
    Batch,
    CompletionT,
    Item,
)
from pixtral_client.errors import from_rpc_error
from pixtral_client.functions import (
    ToolRun,
)
from pixtral_client.messages import Messages
from pixtral_client.requests import (
    Tls,
    authorization,
    chat_request,
    completion,
    time_left,
)
from pixtral_client.results import (
    Completion,
)
from pixtral_client.retries import RetryBudget, Tries
from pixtral_client.sent_images import KnownImages, Outgoing, Request
from pixtral_client.structured import ResponseModel

Read = Callable[[Completion], CompletionT]


class Requests:
    """Makes the requests of both clients, and their tries."""

    def __init__(
        self, target: str, tls: Tls | None, api_key: str | None, timeout: float, max_retries: int
    ) -> None:
        if max_retries < 0:
            raise ValueError("max_retries must be 0 or more")
        self._timeout = timeout
        self._max_retries = max_retries
        self._budget = RetryBudget()
        self._known = KnownImages()
        self._metadata = authorization(api_key, target, tls)

    def _outgoing(
        self,
        made: type[Request],
        messages: Messages,
        model: str | None,
        options: Mapping[str, Any],
    ) -> Outgoing[Request]:
        return Outgoing(chat_request(made, messages, model, options), self._known)

    def _tries(
        self,
        timeout: float | None,
        outgoing: Outgoing[Any] | None = None,
        *,
        is_patient: bool = False,
    ) -> Tries:
        left = time_left(timeout or self._timeout)
        return Tries(left, self._max_retries, self._budget, outgoing, is_patient=is_patient)

    def _prepare(
        self, item: Item, model: str | None, timeout: float | None, options: Mapping[str, Any]
    ) -> None:
        """Makes a conversation of a `map` into a request. Raises TypeError and ValueError."""
        item.outgoing = self._outgoing(chat_pb2.CompleteRequest, item.messages, model, options)
        item.tries = self._tries(timeout, item.outgoing, is_patient=True)


def read_form(
    response_model: type[Any] | None, options: Mapping[str, Any]
) -> tuple[Any, Read[Any]]:
    """The options with the form of the answer, and a function that reads the answer."""
    if response_model is None:
        return options, lambda answer: answer
    wanted = ResponseModel(response_model)
    return wanted.options(options), wanted.read


def settle(
    batch: Batch[CompletionT],
    item: Item,
    result: chat_pb2.CompleteResponse | grpc.RpcError,
    read: Read[CompletionT],
) -> None:
    """Reports the result of one try to the batch."""
    if isinstance(result, chat_pb2.CompleteResponse):
        item.begun.answered()
        try:
            batch.answered(item, read(completion(result)))
        except ValueError as error:
            batch.failed(item, error)
        return
    failed = from_rpc_error(result)
    wait = item.begun.wait_after(failed)
    if wait is None:
        batch.failed(item, failed)
    else:
        batch.again(item, failed, wait)


def run_of(end: StopIteration) -> ToolRun:
    run: ToolRun = end.value
    return run
