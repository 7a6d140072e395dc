"""Offers a gateway text requests over gRPC from its own process, and reports the answers.

    python -m bench.offer --target HOST:PORT --rate 20 --seconds 30
    python -m bench.offer --target HOST:PORT --at-once 8 --seconds 30

With a rate it is an open loop with Poisson arrivals, and times count from when a request was due.
Prints one JSON object, see `Offered`. It uses raw stubs, because it shares the machine with the
gateway.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import grpc
import uvloop

from bench.loops import Arrival, Outcome, keep_at_once, open_loop, percentile
from bench.module_path import OURS, module_path
from pixtral.v1 import chat_pb2, chat_pb2_grpc

TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Offered:
    """The answers of a load. Times are in seconds, NaN if nothing was measured.

    Attributes:
        sent: requests sent.
        seconds: length of the load.
        answered: requests answered in full.
        refused: requests refused for overload.
        others: requests that ended otherwise, by code.
        answered_per_second: answered requests a second.
        first_token_p50: time to the first token.
        first_token_p99: the same.
        answer_p50: time to the end of an answer.
        answer_p99: the same.
        refusal_p50: time to a refusal.
        refusal_p99: the same.
        refusal_since_sent_p50: time to a refusal without the generator's delay.
        late_p99: the generator's delay.
    """

    sent: int
    seconds: float
    answered: int
    refused: int
    others: dict[str, int]
    answered_per_second: float
    first_token_p50: float
    first_token_p99: float
    answer_p50: float
    answer_p99: float
    refusal_p50: float
    refusal_p99: float
    refusal_since_sent_p50: float
    late_p99: float

    @classmethod
    def of(cls, arrivals: Sequence[Arrival], seconds: float) -> "Offered":
        answered = [each for each in arrivals if each.code == "OK"]
        refused = [each.ended for each in arrivals if each.code == "RESOURCE_EXHAUSTED"]
        firsts = [each.first for each in answered if each.first is not None]
        ends = [each.ended for each in answered]
        codes = Counter(each.code for each in arrivals)
        others = {c: n for c, n in codes.items() if c not in ("OK", "RESOURCE_EXHAUSTED")}
        return cls(
            sent=len(arrivals),
            seconds=seconds,
            answered=len(answered),
            refused=len(refused),
            others=others,
            answered_per_second=len(answered) / seconds,
            first_token_p50=percentile(firsts, 0.5),
            first_token_p99=percentile(firsts, 0.99),
            answer_p50=percentile(ends, 0.5),
            answer_p99=percentile(ends, 0.99),
            refusal_p50=percentile(refused, 0.5),
            refusal_p99=percentile(refused, 0.99),
            refusal_since_sent_p50=percentile(
                (a.ended - a.sent for a in arrivals if a.code == "RESOURCE_EXHAUSTED"), 0.5
            ),
            late_p99=percentile((each.sent for each in arrivals), 0.99),
        )


class Offer:
    """A load in its own process; `seen` waits for its end."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, target: str, **flags: float | str) -> "Offer":
        pairs = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "bench.offer", "--target", target, *pairs),
            env={**os.environ, **module_path(*OURS)},
            stdout=asyncio.subprocess.PIPE,
        )
        return cls(process)

    async def seen(self) -> Offered:
        out, _ = await self._process.communicate()
        if self._process.returncode:
            raise RuntimeError("the load generator has failed")
        return Offered(**json.loads(out))


async def offer(args: argparse.Namespace) -> Offered:
    metadata = (("authorization", f"Bearer {args.key}"),) if args.key else ()
    async with grpc.aio.insecure_channel(args.target) as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)

        async def ask(number: int) -> Outcome:
            request = chat_pb2.StreamCompleteRequest(
                chat=chat_pb2.Chat(
                    messages=[
                        chat_pb2.Message(
                            role=chat_pb2.ROLE_USER,
                            content=[
                                chat_pb2.ContentPart(text=f"{args.name} {number}: what is that?")
                            ],
                        )
                    ],
                    sampling=chat_pb2.SamplingParams(
                        max_tokens=args.tokens, temperature=0, ignore_eos=True
                    ),
                )
            )
            call = stub.StreamComplete(request, metadata=metadata, timeout=TIMEOUT_SECONDS)
            first = None
            try:
                async for response in call:
                    if first is None and response.HasField("delta"):
                        first = time.perf_counter()
            except grpc.aio.AioRpcError as error:
                return Outcome(error.code().name, time.perf_counter())
            return Outcome("OK", time.perf_counter(), first)

        await channel.channel_ready()
        began = time.perf_counter()
        if args.rate is not None:
            arrivals = await open_loop(ask, rate=args.rate, seconds=args.seconds, seed=args.seed)
        else:
            arrivals = await keep_at_once(ask, at_once=args.at_once, seconds=args.seconds)
        # An open loop ends when the last request is due, yet later answers count.
        took = args.seconds if args.rate is not None else time.perf_counter() - began
        return Offered.of(arrivals, took)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--target", required=True)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--rate", type=float, help="requests due a second")
    how.add_argument("--at-once", type=int, help="concurrent requests")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tokens", type=int, default=16, help="tokens of each answer")
    parser.add_argument("--key", default="", help="an API key")
    parser.add_argument("--name", default="Question", help="first word of each request")
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(asdict(uvloop.run(offer(parser.parse_args())))))


if __name__ == "__main__":
    main()
