"""The benchmarks of Pixtral-12B's model card against a running server, beside the card's figures.

    make evals URL=http://127.0.0.1:8000
    python -m bench.evals --url grpc://127.0.0.1:50051 --only chartqa docvqa --limit 200
    python -m bench.evals --score-only --results DIR    # asks nothing

Data sets are JSON lines in --data, which `python -m bench.evals.convert` makes. Answers go to
--results as they come: the same command goes on where it was ended. docs/how-to/evals.md has the
data sets, the metrics, and how they differ from those of other harnesses.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from bench.evals.asking import TIMEOUT, NoServer, Server, open_server
from bench.evals.benchmarks import BENCHMARKS, Benchmark
from bench.evals.questions import BadData
from bench.evals.report import as_json, table
from bench.evals.run import Run
from bench.evals.scores import Score

BENCH = Path(__file__).resolve().parents[1]


class Refused(Exception):
    """The flags do not fit together, or a directory lacks something."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 if every question has its score, 1 if one lacks it, 2 if the run
    was refused or its server went, 130 if it was interrupted."""
    flags = parser().parse_args(arguments)
    try:
        scores, model = score_again(flags) if flags.score_only else ask(flags)
    except (BadData, NoServer, Refused) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        return 130
    print(table(scores, model))
    return int(any(each.scored < each.questions for each in scores))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m bench.evals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [benchmark.name for benchmark in BENCHMARKS]
    made.add_argument("--url", help="http(s)://HOST:PORT of any OpenAI API, or grpc://HOST:PORT")
    made.add_argument("--model", default="", help="the model's name; the server's first if absent")
    made.add_argument("--data", type=Path, default=BENCH / "data", help="the directory of data")
    made.add_argument(
        "--results", type=Path, help="where answers go; bench/results/evals/MODEL if absent"
    )
    made.add_argument("--only", nargs="+", choices=names, help="all that have data if absent")
    made.add_argument("--concurrency", type=positive, default=16, help="questions at once")
    made.add_argument("--limit", type=positive, help="the most questions of each, for a first look")
    made.add_argument(
        "--timeout", type=float, default=TIMEOUT, help="seconds for a question with all tries"
    )
    made.add_argument("--judge-url", help="the OpenAI API of the judge of mm_mt_bench")
    made.add_argument("--judge-model", help="the judge; mistral-evals uses gpt-4o-2024-05-13")
    made.add_argument(
        "--judge-without-images", action="store_true", help="for a judge that takes text alone"
    )
    made.add_argument(
        "--score-only", action="store_true", help="score the answers of --results again"
    )
    made.epilog = "PIXTRAL_API_KEY and JUDGE_API_KEY are the keys of the server and of the judge."
    return made


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def ask(flags: argparse.Namespace) -> tuple[list[Score], str]:
    if not flags.url:
        raise Refused("name the server: --url http://HOST:PORT, or make evals URL=...")
    benchmarks = with_data(flags.data, flags.only)
    needs_judge = any(benchmark.is_judged for benchmark in benchmarks)
    if needs_judge and not (flags.judge_url and flags.judge_model):
        raise Refused(
            "mm_mt_bench needs a judge: give --judge-url and --judge-model, or leave it out by "
            "--only"
        )
    with ExitStack() as stack:
        key = os.environ.get("PIXTRAL_API_KEY", "")
        server = stack.enter_context(open_server(flags.url, flags.model, key, flags.timeout))
        judge: Server | None = None
        if needs_judge:
            judge_key = os.environ.get("JUDGE_API_KEY", "")
            judge = stack.enter_context(
                open_server(flags.judge_url, flags.judge_model, judge_key, flags.timeout)
            )
        results = flags.results or BENCH / "results" / "evals" / server.model.replace("/", "--")
        about = begin(results, server.model, flags.url)
        if judge is not None:
            about["judge"] = judge.model
        run = Run(results, flags.concurrency, flags.limit, not flags.judge_without_images)
        scores: list[Score] = []
        for benchmark in benchmarks:
            scores.append(run.ask(benchmark, flags.data, server, judge))
            # A run that is ended in the middle leaves the scores of those before it.
            write(results, scores, about)
    return scores, server.model


def score_again(flags: argparse.Namespace) -> tuple[list[Score], str]:
    if not flags.results or not (flags.results / "scores.json").exists():
        raise Refused("--score-only needs --results DIR with the answers of a run")
    about = json.loads((flags.results / "scores.json").read_text("utf-8"))
    about = {name: about[name] for name in about if name not in ("benchmarks", "card")}
    run = Run(flags.results)
    wanted = [each for each in BENCHMARKS if not flags.only or each.name in flags.only]
    scores = [run.score(benchmark) for benchmark in wanted if run.has(benchmark)]
    write(flags.results, scores, about)
    return scores, about["model"]


def with_data(data: Path, only: Sequence[str] | None) -> list[Benchmark]:
    """The benchmarks to ask."""
    there = [each for each in BENCHMARKS if (data / f"{each.name}.jsonl").exists()]
    lacking = set(only or ()) - {each.name for each in there}
    if lacking:
        raise Refused(f"{data} has no {', '.join(f'{name}.jsonl' for name in sorted(lacking))}")
    if not there:
        names = ", ".join(f"{each.name}.jsonl" for each in BENCHMARKS)
        raise Refused(f"{data} has none of {names}: docs/how-to/evals.md says how to get them")
    return [each for each in there if not only or each.name in only]


def begin(results: Path, model: str, url: str) -> dict[str, str]:
    """Notes in the directory whose answers are there. Refuses to mix those of two models."""
    results.mkdir(parents=True, exist_ok=True)
    scores = results / "scores.json"
    if scores.exists():
        found = json.loads(scores.read_text("utf-8"))["model"]
        if found != model:
            raise Refused(f"{results} has answers of {found}: give another --results")
    about = {"model": model, "url": url, "date": datetime.now(UTC).strftime("%Y-%m-%d")}
    if not scores.exists():
        write(results, [], about)
    return about


def write(results: Path, scores: Sequence[Score], about: dict[str, str]) -> None:
    """Replaces the scores of these benchmarks, and leaves those of others."""
    path = results / "scores.json"
    written = as_json(scores, **about)
    if path.exists():
        earlier = json.loads(path.read_text("utf-8"))["benchmarks"]
        written["benchmarks"] = {**earlier, **written["benchmarks"]}
    path.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
