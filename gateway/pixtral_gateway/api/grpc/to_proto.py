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


def choice(delta: Delta) -> chat_pb2.Choice:
    made = chat_pb2.Choice(
        index=delta.index,
        text=delta.text,
        token_ids=delta.token_ids,
        finish_reason=FINISH_REASONS[delta.finish_reason],
    )
    # Every token passes here, and few have these.
    if delta.logprobs:
        made.logprobs.extend(map(logprobs.to_proto, delta.logprobs))
    if delta.tool_calls:
        made.tool_calls.extend(map(tool_call, delta.tool_calls))
    if delta.reasoning:
        made.reasoning = delta.reasoning
    set_stop_reason(made, delta)
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
