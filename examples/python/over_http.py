"""Asks about an image with OpenAI's client, by chat completions and by the Responses.

    python examples/python/over_http.py [IMAGE [QUESTION]]

Needs `pip install openai`.
"""

import base64
import os
import sys
from pathlib import Path

import openai


def main(image: str = "docs/demo/street.png", question: str = "How many shapes are there?") -> None:
    url = os.environ.get("PIXTRAL_URL", "http://127.0.0.1:8000")
    shown = "data:image/png;base64," + base64.b64encode(Path(image).read_bytes()).decode()
    key = os.environ.get("PIXTRAL_API_KEY", "any")
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key) as client:
        model = client.models.list().data[0].id
        print("model:", model)
        answer = client.chat.completions.create(
            model=model,
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": shown}},
                        {"type": "text", "text": question},
                    ],
                }
            ],
            temperature=0,
        )
        print("whole:", answer.choices[0].message.content)
        print("stream: ", end="")
        with client.responses.stream(
            model=model,
            input=[
                {
                    "role": "user",
                    "content": [
                        {"type": "input_image", "image_url": shown, "detail": "auto"},
                        {"type": "input_text", "text": question},
                    ],
                }
            ],
            temperature=0,
        ) as stream:
            for event in stream:
                if event.type == "response.output_text.delta":
                    print(event.delta, end="", flush=True)
        print()
        try:
            client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": question}], temperature=-1
            )
        except openai.BadRequestError as refused:
            print("refused:", refused.code, refused.param)


if __name__ == "__main__":
    main(*sys.argv[1:])
