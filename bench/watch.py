"""Checks that every dashboard query and rule returns data from a real stack under load.

    make watch-live

A real Prometheus watches two minutes of texts, new images and repeated ones. Then every query of
every dashboard and every rule must return numbers, every rule must be healthy, and no alert may
fire. With `--draw DIRECTORY`, it also draws the graphs of each dashboard from that Prometheus.
"""

import argparse
import itertools
import re
import sys
import threading
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.draw import draw
from bench.pictures import jpeg
from bench.prometheus import Prometheus, filled, prometheus
from pixtral_cli import pixtral_stack
from pixtral_client import Client
from tools.expressions import Expression, panels, rules

# On a healthy fleet an alert's comparison returns nothing; with `bool` it returns 0.
COMPARISON = re.compile(r" (==|!=|>=|<=|>|<) ")


def load(client: Client, seconds: float, at_once: int) -> int:
    """Keeps `at_once` requests running; returns how many were answered."""
    until = time.monotonic() + seconds
    known, fresh = jpeg(0, 384, 384), itertools.count(1)
    lock = threading.Lock()

    def worker(first: int) -> int:
        for turn in itertools.count(first):
            if time.monotonic() > until:
                return turn - first
            content: list[Any] = [f"Question {turn}: what is this?"]
            if turn % 3 == 1:
                content.insert(0, known)
            elif turn % 3 == 2:
                with lock:
                    seed = next(fresh)
                content.insert(0, jpeg(seed, 384, 384))
            client.chat([{"role": "user", "content": content}], max_tokens=16, ignore_eos=True)
        raise AssertionError

    with ThreadPoolExecutor(at_once) as pool:
        return sum(pool.map(worker, range(at_once)))


def plain(expression: Expression) -> str:
    """The expression without an alert's filter, so that it returns data."""
    text = filled(expression.text)
    return COMPARISON.sub(r" \1 bool ", text) if expression.is_alert else text


def check(server: Prometheus, at: float) -> list[str]:
    """The faults, one a line."""
    amiss = []
    for expression in (*panels(), *rules()):
        try:
            numbers = server.numbers(expression.record or plain(expression), at)
        except urllib.error.HTTPError as error:
            amiss.append(f"{expression.name}: {error.read().decode()}")
            continue
        if not numbers:
            amiss.append(f"{expression.name}: no data from {expression.text}")
    for group in server.get("api/v1/rules")["data"]["groups"]:
        for rule in group["rules"]:
            if rule["health"] != "ok":
                amiss.append(f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}")
            if rule.get("state", "inactive") != "inactive":
                amiss.append(f"{rule['name']} is {rule['state']}")
    return amiss


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long the load runs")
    parser.add_argument("--at-once", type=int, default=2, help="concurrent requests")
    parser.add_argument("--draw", type=Path, help="directory to draw the dashboards into")
    arguments = parser.parse_args()

    stack = pixtral_stack(arguments.model_dir)
    with stack, Client(stack.target, timeout=120) as client:
        targets = {tier: each.metrics for tier, each in stack.addresses.items()}
        with prometheus(targets) as server:
            begin = time.time()
            answered = load(client, arguments.seconds, arguments.at_once)
            end = time.time()
            print(f"{answered} requests answered in {end - begin:.0f} s")
            amiss = check(server, end)
            if arguments.draw is not None:
                draw(server, begin, end, arguments.draw)
    if amiss:
        sys.exit("\n".join(amiss))
    count = len([*panels(), *rules()])
    print(f"all {count} expressions returned data, every rule is healthy, no alert fired")


if __name__ == "__main__":
    main()
