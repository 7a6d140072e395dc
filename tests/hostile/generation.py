"""Attacks through requests to the model."""

import asyncio
import json

from tests.hostile.attack import Ground, attack
from tests.hostile.messages import COMPLETIONS, body_of

# Ambiguous only behind more bytes than a trial looks at.
LATE = 'root ::= "a"{300} s\ns ::= "b" | s s | s s s'
# The end of an answer, kept from being chosen.
NO_END = {2: -100.0}


@attack("6", "a request whose structure holds the engine up is ended", seconds=10.0)
async def a_grammar_that_turns_ambiguous(ground: Ground) -> None:
    async with ground.client() as client:

        async def ask() -> None:
            await ground.counted(
                client.chat(
                    [{"role": "user", "content": "Go on."}],
                    max_tokens=1200,
                    structured_output={"grammar": LATE},
                    logit_bias=NO_END,
                )
            )

        await asyncio.gather(*(ask() for _ in range(4)))


@attack("7", "an answer that is gathered whole is bounded in its log-probabilities", seconds=5.0)
async def log_probabilities_of_many_choices(ground: Ground) -> None:
    body = body_of(
        "Tell me a story.",
        n=64,
        logprobs=True,
        top_logprobs=20,
        max_tokens=3000,
        ignore_eos=True,
        temperature=1,
    )
    json.loads(body)
    await ground.post(COMPLETIONS, body)


@attack("9", "tenants take turns at the decoder", seconds=5.0)
async def sixty_four_choices(ground: Ground) -> None:
    async with ground.client() as client:
        await ground.counted(
            client.chat(
                [{"role": "user", "content": "Tell me a story."}],
                n=64,
                max_tokens=1000,
                ignore_eos=True,
                temperature=1,
            )
        )


@attack("9", "a short prompt is taken in beside a long one", seconds=5.0)
async def a_prompt_of_the_whole_context(ground: Ground) -> None:
    async with ground.client() as client:
        text = "one two three four five six seven eight nine ten " * 2800
        await ground.counted(client.chat([{"role": "user", "content": text}], max_tokens=1))
