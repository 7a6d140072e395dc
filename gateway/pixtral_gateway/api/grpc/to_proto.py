"""The gateway's own data as messages of `pixtral.v1`."""

from google.protobuf.duration_pb2 import Duration

from pixtral.v1 import chat_pb2
from pixtral_core.generation import logprobs
from pixtral_gateway.request import Delta, Finished, FinishReason, ToolCallDelta

FINISH_REASONS = {
    None: chat_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: chat_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: chat_pb2.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: chat_pb2.FINISH_REASON_TOOL_CALLS,
}


def response(completion_id: str, model: str, delta: Delta) -> chat_pb2.StreamCompleteResponse:
    made = chat_pb2.StreamCompleteResponse(id=completion_id, model=model)
    # This fills the delta inside the response. A separate message would be copied, and every token
    # takes this path.
    choice = made.delta
    choice.index = delta.index
    choice.text = delta.text
    choice.token_ids.extend(delta.token_ids)
    # Few deltas have the fields below.
    if delta.finish_reason is not None:
        choice.finish_reason = FINISH_REASONS[delta.finish_reason]
        set_stop_reason(choice, delta)
    if delta.logprobs:
        choice.logprobs.extend(map(logprobs.to_proto, delta.logprobs))
    if delta.tool_calls:
        choice.tool_calls.extend(map(tool_call, delta.tool_calls))
    if delta.reasoning:
        choice.reasoning = delta.reasoning
    return made


def set_stop_reason(choice: chat_pb2.Choice, delta: Delta) -> None:
    match delta.stop_reason:
        case None:
            pass
        case str():
            choice.stop_string = delta.stop_reason
        case int():
            choice.stop_token_id = delta.stop_reason


def tool_call(call: ToolCallDelta) -> chat_pb2.ToolCall:
    return chat_pb2.ToolCall(index=call.index, id=call.id, name=call.name, arguments=call.arguments)


def completion(finished: Finished) -> chat_pb2.Completion:
    usage, timings = finished.usage, finished.timings
    return chat_pb2.Completion(
        usage=chat_pb2.Usage(
            prompt_tokens=usage.prompt_tokens,
            image_tokens=usage.image_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            reasoning_tokens=usage.reasoning_tokens,
        ),
        timings=chat_pb2.Timings(
            queue=_duration(timings.queue),
            encode=_duration(timings.encode),
            time_to_first_token=_duration(timings.time_to_first_token),
            total=_duration(timings.total),
        ),
        images=[
            chat_pb2.ImageReport(
                sha256=image.sha256,
                width=image.width,
                height=image.height,
                tokens=image.tokens,
                cached=image.cached,
                encode=_duration(image.encode),
            )
            for image in finished.images
        ],
        prompt_logprobs=map(logprobs.to_proto, finished.prompt_logprobs),
    )


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
