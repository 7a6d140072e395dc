"""How much of what it is shown the small Pixtral reads, by exact match, category by category.

    python -m bench.accuracy [--offline] [--target HOST:PORT] [--detail low] [--picture FILE]

Asks held-out questions through the running service, over gRPC and greedily; where no target is
named, it starts the whole stack. `--offline` asks the plain torch model in this process instead.
Prints one line a category, and the answers' digest: equal digests are equal answers.
"""

import argparse
import hashlib
import json
import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from bench.confusion import draw_confusions
from pixtral_cli import pixtral_stack
from pixtral_client import Client
from training.answer import MAX_TOKENS, OfflineModel
from training.held_out import Item, held_out
from training.scenes import CATEGORIES

MODEL_DIR = Path(__file__).resolve().parent.parent / "models" / "pixtral-mini"

Ask = Callable[[Item], str]


def ask_service(client: Client, item: Item, detail: str = "auto") -> str:
    """The service's greedy answer."""
    pictures = [{"type": "image", "image": each, "detail": detail} for each in item.pictures]
    content = [*pictures, item.question.text]
    messages = [{"role": "user", "content": content}]
    return client.chat(messages, temperature=0.0, max_tokens=MAX_TOKENS).text


def ask_all(ask: Ask, items: Sequence[Item], at_once: int) -> list[str]:
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(ask, items))


def score(items: Sequence[Item], answers: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Right answers, and questions, of each category."""
    asked = Counter(item.question.category for item in items)
    right = Counter(
        item.question.category
        for item, answer in zip(items, answers, strict=True)
        if answer == item.question.answer
    )
    return {category: (right[category], asked[category]) for category in CATEGORIES}


def digest(answers: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(answers).encode()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.accuracy", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", help="host:port of a running gateway")
    parser.add_argument("--offline", action="store_true", help="the plain torch model, no service")
    parser.add_argument("--at-once", type=int, default=16, help="requests under way at a time")
    parser.add_argument(
        "--detail",
        choices=["auto", "low", "high"],
        default="auto",
        help="how large pictures are shown",
    )
    parser.add_argument(
        "--decoder-args",
        type=shlex.split,
        default=[],
        metavar="FLAGS",
        help="more flags of the decoder that this starts, such as '--quantization fp8'",
    )
    parser.add_argument("--picture", type=Path, help="where to draw the confusions")
    parser.add_argument("--answers", type=Path, help="where to write all answers, a JSON a line")
    given = parser.parse_args()

    items = held_out(given.questions, seed=given.seed)
    with ExitStack() as stack:
        if given.offline:
            offline = OfflineModel.from_checkpoint(given.model)
            answers = [
                offline.ask(item.pictures, item.question.text, guess=item.question.answer)
                for item in items
            ]
        else:
            target = given.target
            if target is None:
                target = stack.enter_context(
                    pixtral_stack(given.model, decoder_args=given.decoder_args)
                ).target
            client = stack.enter_context(Client(target))
            began = time.perf_counter()
            answers = ask_all(
                lambda item: ask_service(client, item, given.detail), items, given.at_once
            )
            print(f"{len(items) / (time.perf_counter() - began):.1f} answers a second")
    report(items, answers)
    if given.picture:
        draw_confusions(items, answers, given.picture)
    if given.answers:
        lines = [
            json.dumps(
                {
                    "category": item.question.category,
                    "question": item.question.text,
                    "expected": item.question.answer,
                    "answer": answer,
                }
            )
            for item, answer in zip(items, answers, strict=True)
        ]
        given.answers.write_text("\n".join(lines) + "\n", encoding="utf-8")


def report(items: Sequence[Item], answers: Sequence[str]) -> None:
    """Prints the scores, and per category the answer that was wrong most often."""
    wrong: defaultdict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for item, answer in zip(items, answers, strict=True):
        if answer != item.question.answer:
            wrong[item.question.category][item.question.answer, answer] += 1
    scores = score(items, answers)
    for category, (right, asked) in scores.items():
        worst = wrong[category].most_common(1)
        example = f"   e.g. {worst[0][0][1]!r} for {worst[0][0][0]!r}" if worst else ""
        print(f"{category:>10} {right / max(asked, 1):7.1%} of {asked}{example}")
    right = sum(right for right, _ in scores.values())
    print(f"{'all':>10} {right / len(items):7.1%} of {len(items)}   answers {digest(answers)}")


if __name__ == "__main__":
    main()
