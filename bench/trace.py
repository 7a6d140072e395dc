"""Prints the traces of three requests to a real stack: a new image, the same again, and a text.

python -m bench.trace --model-dir .cache/random-pixtral
"""

import argparse
import os
from pathlib import Path
from typing import Any

from pixtral_cli import pixtral_stack
from pixtral_client import Client
from tests.support.stack.span_collector import SpanSeen, collector, tree

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "cat.jpg"
QUESTIONS: dict[str, list[Any]] = {
    "a new picture": [PICTURE, "What is this?"],
    "the same again": [PICTURE, "And why?"],
    "a text": ["Hello!"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-dir", type=Path, required=True)
    arguments = parser.parse_args()
    with collector() as receiver:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.endpoint
        with pixtral_stack(arguments.model_dir) as stack, Client(stack.target) as client:
            for content in QUESTIONS.values():
                client.chat([{"role": "user", "content": content}], max_tokens=8, ignore_eos=True)
        # The processes have sent all spans once they have stopped.
        traces: dict[str, list[SpanSeen]] = {}
        for span in sorted(receiver.spans, key=lambda span: span.began):
            traces.setdefault(span.trace_id, []).append(span)
    for what, spans in zip(QUESTIONS, traces.values(), strict=True):
        print(f"{what}\n{tree(spans)}\n")


if __name__ == "__main__":
    main()
