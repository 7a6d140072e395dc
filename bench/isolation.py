"""How much one tenant suffers while another floods the gateway.

    make bench-isolation

Tenant `quiet` asks one question after the other on the real stack. Meanwhile tenant `loud` sends
nothing, then as much as its limit allows, then ten times that. These turns repeat, so that all
loads see the same machine. Prints a table and writes it to bench/results/.
"""

import argparse
import asyncio
import json
import secrets
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.loops import percentile
from bench.module_path import ROOT
from bench.offer import Offer, Offered
from pixtral_cli import pixtral_stack
from pixtral_gateway.tenancy.tenants import digest_of

TOKENS = 8
# The loud tenant's limit in requests a second, and the tokens that each request counts for.
ALLOWED = 2.0
TOKENS_A_REQUEST = 30
# How many times its limit the loud tenant sends, by turn.
TIMES = (0, 1, 10)


def tenants_file(directory: Path, keys: dict[str, str]) -> Path:
    limit = f"tokens_per_minute = {round(ALLOWED * TOKENS_A_REQUEST * 60)}\n"
    tables = [
        f'[{name}]\nkeys = ["{digest_of(key)}"]\n{limit if name == "loud" else ""}'
        for name, key in keys.items()
    ]
    path = directory / "tenants.toml"
    path.write_text("\n".join(tables), "utf-8")
    return path


async def turn(target: str, keys: dict[str, str], times: int, seconds: float) -> dict[str, Any]:
    flags = {"tokens": TOKENS, "seconds": seconds, "seed": secrets.randbits(16)}
    loud = None
    if times:
        rate = times * ALLOWED
        loud = await Offer.start(target, **flags, rate=rate, key=keys["loud"], name="Loud")
    quiet = await Offer.start(target, **flags, at_once=1, key=keys["quiet"], name="Quiet")
    seen = await quiet.seen()
    return {"quiet": seen, "loud": await loud.seen() if loud is not None else None}


async def measure(
    target: str, keys: dict[str, str], turns: int, seconds: float
) -> dict[int, dict[str, Any]]:
    found: dict[int, list[dict[str, Any]]] = {times: [] for times in TIMES}
    await turn(target, keys, 1, 3.0)
    for _ in range(turns):
        for times in TIMES:
            if times == 1:
                # The idle turn has refilled the tenant's limit for a minute; this spends it first.
                await (
                    await Offer.start(target, seconds=6, rate=100, tokens=TOKENS, key=keys["loud"])
                ).seen()
            found[times].append(await turn(target, keys, times, seconds))
    return {times: _together(each) for times, each in found.items()}


def _together(turns: list[dict[str, Any]]) -> dict[str, Any]:
    quiet: list[Offered] = [each["quiet"] for each in turns]
    loud: list[Offered] = [each["loud"] for each in turns if each["loud"] is not None]
    return {
        "quiet_answered": sum(each.answered for each in quiet),
        "quiet_refused": sum(each.refused for each in quiet),
        "first_token_p50": percentile((each.first_token_p50 for each in quiet), 0.5),
        "first_token_p99": percentile((each.first_token_p99 for each in quiet), 0.5),
        "loud_answered": sum(each.answered for each in loud),
        "loud_refused": sum(each.refused for each in loud),
        "turns": [asdict(each) for each in quiet],
    }


def table(found: dict[int, dict[str, Any]]) -> str:
    lines = [
        "loud sends     loud answered/refused   quiet answered/refused   first token p50 / p99"
    ]
    for times, seen in found.items():
        lines.append(
            f"  {f'{times} x its limit':12}{seen['loud_answered']:12}/{seen['loud_refused']:<8}"
            f"{seen['quiet_answered']:15}/{seen['quiet_refused']:<8}"
            f"{seen['first_token_p50'] * 1e3:12.1f} /{seen['first_token_p99'] * 1e3:7.1f} ms"
        )
    p99 = {times: seen["first_token_p99"] for times, seen in found.items()}
    lines.append(
        f"quiet's p99 while loud floods: {p99[10] / p99[1]:.2f}x that while loud keeps its limit, "
        f"{p99[10] / p99[0]:.2f}x that alone (each the median of the turns')"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds of each turn")
    args = parser.parse_args()
    results = ROOT / "bench" / "results"
    results.mkdir(parents=True, exist_ok=True)
    keys = {name: secrets.token_urlsafe(32) for name in ("loud", "quiet")}
    with tempfile.TemporaryDirectory() as directory:
        flags = ["--api-keys", str(tenants_file(Path(directory), keys)), "--log-level", "warning"]
        with pixtral_stack(args.model_dir, gateway_args=flags) as stack:
            found = asyncio.run(measure(stack.target, keys, args.turns, args.seconds))
    text = table(found)
    print(text)
    (results / "isolation.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    (results / "isolation.txt").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
