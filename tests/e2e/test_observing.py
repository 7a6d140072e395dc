"""A request followed through all processes, by its trace and by its lines in their logs."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from pixtral.v1 import chat_pb2, chat_pb2_grpc
from tests.support.stack.new_picture import new_picture
from tests.support.stack.service import Service, wait_until
from tests.support.stack.span_collector import Collector, SpanSeen

ROOT = Path(__file__).resolve().parents[2]
TIERS = ("gateway", "encoder", "decoder")
QUESTION = "Which xylophone is this?"
CHAT = "pixtral.v1.ChatService/StreamComplete"
ENCODE = "pixtral.internal.v1.EncoderService/Encode"
GENERATE = "pixtral.internal.v1.DecoderService/Generate"


@dataclass(frozen=True)
class Watched:
    service: Service
    collector: Collector

    def ask(self, picture: bytes, *headers: tuple[str, str]) -> "Answer":
        request = chat_pb2.StreamCompleteRequest(
            chat=chat_pb2.Chat(
                messages=[
                    chat_pb2.Message(
                        role=chat_pb2.ROLE_USER,
                        content=[
                            chat_pb2.ContentPart(image=chat_pb2.Image(data=picture)),
                            chat_pb2.ContentPart(text=QUESTION),
                        ],
                    )
                ],
                sampling=chat_pb2.SamplingParams(max_tokens=6, temperature=0, ignore_eos=True),
            )
        )
        with grpc.insecure_channel(self.service.stack.target) as channel:
            stub = chat_pb2_grpc.ChatServiceStub(channel)
            call = stub.StreamComplete(request, timeout=60, metadata=headers)
            responses = list(call)
            request_id = dict(call.trailing_metadata())["x-request-id"]
        return Answer(
            request_id=str(request_id),
            completion=responses[-1].completion,
            text="".join(response.delta.text for response in responses),
            picture=picture,
        )

    def trace(self, request_id: str) -> list[SpanSeen]:
        """All spans of a request, once each tier's own is there."""
        trace_id = self.line("gateway", request_id)["trace_id"]

        def of(spans: list[SpanSeen]) -> list[SpanSeen]:
            return [span for span in spans if span.trace_id == trace_id]

        return of(
            self.collector.wait(
                lambda spans: {CHAT, GENERATE, ENCODE} <= {s.name for s in of(spans)}
            )
        )

    def line(self, tier: str, request_id: str) -> dict[str, Any]:
        """The one line of a tier's log about a request."""
        wait_until(lambda: bool(self.lines(tier, request_id)), f"{request_id} in the {tier}'s log")
        (line,) = self.lines(tier, request_id)
        return line

    def lines(self, tier: str, request_id: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.log(tier).splitlines() if line.startswith("{")]
        return [
            line
            for line in found
            if line["logger"] == "pixtral_core.telemetry.request_log"
            and line["request_id"] == request_id
        ]

    def log(self, tier: str) -> str:
        return (self.service.stack.log_dir / f"{tier}.log").read_text()


@dataclass(frozen=True)
class Answer:
    request_id: str
    completion: chat_pb2.Completion
    text: str
    picture: bytes


@pytest.fixture(scope="module")
def watched(service: Service, spans: Collector) -> Watched:
    return Watched(service, spans)


@pytest.fixture(scope="module")
def answer(watched: Watched) -> Answer:
    return watched.ask(new_picture(640, 480), ("x-request-id", "order-66"))


def test_a_request_is_one_trace_through_all_processes(watched: Watched, answer: Answer) -> None:
    spans = watched.trace(answer.request_id)
    by_id = {span.span_id: span for span in spans}
    # Whose part each span is, up to the request itself.
    paths = {
        (span.service.removeprefix("pixtral-"), span.name): by_id[span.parent_id].name
        for span in spans
        if span.parent_id
    }
    assert paths == {
        ("gateway", "images"): CHAT,
        ("gateway", "prompt"): CHAT,
        ("gateway", "lookup"): CHAT,
        ("gateway", "encode"): CHAT,
        ("encoder", ENCODE): "encode",
        ("encoder", "lookup"): ENCODE,
        ("encoder", "open"): ENCODE,
        ("encoder", "preprocess"): ENCODE,
        ("encoder", "stage"): ENCODE,
        ("encoder", "queue"): ENCODE,
        ("encoder", "batch"): ENCODE,
        ("encoder", "pack"): ENCODE,
        ("encoder", "store"): ENCODE,
        ("gateway", "generate"): CHAT,
        ("decoder", GENERATE): "generate",
        ("decoder", "embedding"): GENERATE,
        ("decoder", "queue"): GENERATE,
        ("decoder", "prefill"): GENERATE,
        ("decoder", "stream"): GENERATE,
    }
    (root,) = (span for span in spans if not span.parent_id)
    usage = answer.completion.usage
    assert root.attributes["gen_ai.operation.name"] == "chat"
    assert root.attributes["gen_ai.usage.input_tokens"] == usage.prompt_tokens
    assert root.attributes["gen_ai.usage.output_tokens"] == usage.completion_tokens == 6
    assert root.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert root.events == ("first_token",)
    assert not any(span.is_error for span in spans)
    assert all(root.began - 1e-3 <= span.began <= span.ended for span in spans)


def test_the_traces_hold_nothing_of_what_was_asked_and_answered(
    watched: Watched, answer: Answer
) -> None:
    watched.trace(answer.request_id)
    sent = watched.collector.raw
    digest = hashlib.sha256(answer.picture)
    for word in (QUESTION, "xylophone", digest.hexdigest(), answer.text):
        assert word.encode() not in sent
    assert digest.digest() not in sent
    assert answer.picture[:64] not in sent


def test_each_tier_has_one_line_with_the_requests_id_and_its_trace(
    watched: Watched, answer: Answer
) -> None:
    assert answer.request_id == "order-66"
    lines = {tier: watched.line(tier, answer.request_id) for tier in TIERS}
    usage = answer.completion.usage
    assert len({line["trace_id"] for line in lines.values()}) == 1
    assert {line["code"] for line in lines.values()} == {"OK"}
    expected = {
        "gateway": {
            "method": CHAT,
            "images": 1,
            "cached_images": 0,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": 6,
            "finish_reason": "length",
        },
        "encoder": {"method": ENCODE, "source": "encoded", "patches": 40 * 30},
        "decoder": {
            "method": GENERATE,
            "images": 1,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": 6,
            "embeddings_redis": 1,
        },
    }
    for tier, facts in expected.items():
        assert facts.items() <= lines[tier].items(), tier
    assert {"ttft_seconds", "encode_seconds", "seconds"} <= lines["gateway"].keys()
    assert {"queue_seconds", "seconds"} <= lines["encoder"].keys()
    assert {"ttft_seconds", "queue_seconds", "seconds"} <= lines["decoder"].keys()


def test_the_logs_hold_nothing_of_what_was_asked_and_answered(
    watched: Watched, answer: Answer
) -> None:
    for tier in TIERS:
        watched.line(tier, answer.request_id)
        for word in (QUESTION, "xylophone", hashlib.sha256(answer.picture).hexdigest()):
            assert word not in watched.log(tier)


def test_a_picture_that_is_cached_is_seen_to_be(watched: Watched, answer: Answer) -> None:
    again = watched.ask(answer.picture)
    line = watched.line("gateway", again.request_id)
    assert (line["cached_images"], line["encode_seconds"]) == (1, 0)
    assert watched.line("decoder", again.request_id)["embeddings_local"] == 1
    assert watched.lines("encoder", again.request_id) == []


@pytest.mark.parametrize("request_id", ["", "a b", '","code":"OK', "x" * 300])
def test_an_id_that_is_not_well_formed_is_replaced(
    watched: Watched, answer: Answer, request_id: str
) -> None:
    made = watched.ask(answer.picture, ("x-request-id", request_id)).request_id
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert watched.line("gateway", made)["code"] == "OK"


def test_a_clients_own_trace_goes_on(watched: Watched) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    header = ("traceparent", f"00-{trace_id}-b7ad6b7169203331-01")
    told = watched.ask(new_picture(), header)
    spans = watched.trace(told.request_id)
    assert {span.trace_id for span in spans} == {trace_id}
    assert {span.service for span in spans} == {f"pixtral-{tier}" for tier in TIERS}


def test_the_page_names_every_span_field_and_attribute(watched: Watched, answer: Answer) -> None:
    text = (ROOT / "docs" / "observing.md").read_text()
    page = set(re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))
    spans = watched.trace(answer.request_id)
    assert {span.name for span in spans if "/" not in span.name} <= page
    fields = {name for tier in TIERS for name in watched.line(tier, answer.request_id)}
    assert fields - {"time", "level", "logger", "message"} <= page
    attributes = {name for span in spans for name in span.attributes}
    assert {n for n in attributes - page if n.removeprefix("pixtral.") not in page} <= {
        "rpc.system.name",
        "rpc.method",
        "rpc.response.status_code",
    }


def test_handshakes_and_health_checks_make_neither_spans_nor_lines(watched: Watched) -> None:
    for tier in TIERS:
        assert "Info" not in "".join(
            line
            for line in watched.log(tier).splitlines()
            if "pixtral_core.telemetry.request_log" in line
        )
    # Nor does vLLM, which would trace its own start.
    assert {span.service for span in watched.collector.spans} == {f"pixtral-{t}" for t in TIERS}
    names = {span.name for span in watched.collector.spans}
    assert not [name for name in names if "Info" in name or "Health" in name]


def test_without_its_collector_the_service_answers_as_ever(
    watched: Watched, answer: Answer
) -> None:
    # The last of the module: what listens there is gone for good.
    watched.collector.stop()
    for _ in range(3):
        again = watched.ask(answer.picture)
        assert again.text == answer.text
        assert watched.line("decoder", again.request_id)["code"] == "OK"
