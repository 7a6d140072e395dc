"""Users who ask without a pause for long, of every kind, from one seed."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from tests.faults.clients import TIMEOUT_SECONDS, Clients
from tests.faults.history import Ask, Form
from tests.faults.questions import Question, fresh

USERS = 6
PAUSE_SECONDS = 0.3
SHORT_DEADLINES = (0.02, 0.1, 0.4)

_KINDS = {
    "text": 10,
    "known picture": 20,
    "new picture": 20,
    "pair": 12,
    "gallery": 4,
    "long": 14,
    "cancel": 7,
    "deadline": 7,
    "foreign": 6,
    "letter": 8,
    "talk": 6,
    "choices": 4,
    "logprobs": 4,
    "structure": 4,
    "tool": 4,
    "upload": 6,
}


class Workload:
    """The questions of one user, one after the other: the same for the same seed."""

    def __init__(
        self,
        seed: int,
        user: int,
        questions: Sequence[Question],
        tenants: Sequence[str],
        gateways: int,
    ) -> None:
        self._random = random.Random(f"{seed}-{user}")
        self._questions = questions
        self._tenants = tenants
        self._gateways = gateways
        self._prefix = f"{seed}-{user}"
        self._asked = 0

    def next(self) -> list[Ask]:
        """One ask, or some that belong together and are to be made in their order."""
        rng = self._random
        self._asked += 1
        (kind,) = rng.choices(list(_KINDS), list(_KINDS.values()))
        match kind:
            case "text":
                return [self._ask("text", is_new=False)]
            case "known picture":
                return [self._ask("single", is_new=False)]
            case "new picture":
                return [self._ask("single", is_new=True)]
            case "pair" | "gallery":
                return [self._ask(kind, is_new=rng.random() < 0.3)]
            case "letter" | "talk":
                return [self._ask(kind, is_new=kind == "talk" and rng.random() < 0.3)]
            case "choices" | "logprobs" | "structure" | "tool" | "upload":
                made = self._ask("single", is_new=rng.random() < 0.5)
                # The API that takes uploads of images, and gives tokens.
                return [replace(made, protocol="grpc", form=cast("Form", kind))]
            case "long":
                return [self._ask(rng.choice(("long", "text")), is_new=False)]
            case "cancel":
                return [self._ask("long", is_new=False, cancel_after=rng.choice((1, 3, 20)))]
            case "deadline":
                return [
                    self._ask(
                        "long", is_new=rng.random() < 0.5, timeout=rng.choice(SHORT_DEADLINES)
                    )
                ]
            case _:
                return self._foreign()

    def _foreign(self) -> list[Ask]:
        """One shows a picture; another asks for it by name, and then shows it, too."""
        rng = self._random
        owner, other = rng.sample(list(self._tenants), 2)
        shown = self._ask("single", is_new=True, tenant=owner)
        return [
            shown,
            *(self._by_another(shown, other, is_foreign) for is_foreign in (True, False)),
        ]

    def _by_another(self, shown: Ask, tenant: str, is_foreign: bool) -> Ask:
        return replace(
            shown,
            tenant=tenant,
            gateway=self._random.randrange(self._gateways),
            # The only door at which a picture can be named.
            protocol="grpc",
            is_foreign=is_foreign,
        )

    def _ask(
        self,
        kind: str,
        *,
        is_new: bool,
        tenant: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
        cancel_after: int | None = None,
    ) -> Ask:
        rng = self._random
        question = rng.choice([each for each in self._questions if each.name.startswith(kind)])
        pictures = question.pictures
        if is_new:
            pictures = tuple(
                fresh(picture, f"{self._prefix}-{self._asked}-{at}")
                for at, picture in enumerate(pictures)
            )
        return Ask(
            question,
            pictures,
            tenant or rng.choice(list(self._tenants)),
            rng.randrange(self._gateways),
            rng.choice(("grpc", "http")),
            is_stream=cancel_after is not None or rng.random() < 0.6,
            timeout=timeout,
            cancel_after=cancel_after,
        )

    async def run(self, clients: Clients, over: asyncio.Event) -> None:
        """Until `over` is set, and what was begun then has ended."""
        while not over.is_set():
            for ask in self.next():
                await clients.ask(ask)
            await asyncio.sleep(self._random.expovariate(1 / PAUSE_SECONDS))
