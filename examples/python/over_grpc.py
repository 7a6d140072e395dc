"""Asks about an image over gRPC with the SDK, whole and then as a stream.

    python examples/python/over_grpc.py [IMAGE [QUESTION]]

Needs `pip install pixtral-serve`.
"""

import os
import sys
from pathlib import Path

from pixtral_client import Client, InvalidRequest


def main(image: str = "docs/demo/street.png", question: str = "How many shapes are there?") -> None:
    target = os.environ.get("PIXTRAL_TARGET", "127.0.0.1:50051")
    messages = [{"role": "user", "content": [Path(image), question]}]
    with Client(target) as client:
        print("model:", client.models()[0].name)
        answer = client.chat(messages, temperature=0)
        print("whole:", answer.text)
        print("tokens:", answer.usage.prompt_tokens, "and", answer.usage.completion_tokens)
        print("stream: ", end="")
        with client.stream(messages, temperature=0) as stream:
            for delta in stream:
                print(delta.text, end="", flush=True)
        print()
        try:
            client.chat(messages, temperature=-1)
        except InvalidRequest as refused:
            print("refused:", refused.reason, refused.violations[0].field)


if __name__ == "__main__":
    main(*sys.argv[1:])
