"""Asks stock vLLM and this service the same, and compares with docs/api_differences.md.

    python -m bench.compare_api [--write]

Both serve the small model in float32, one after the other. The exit code is 1 where an answer
differs that no argument is given for, where one does not differ that an argument is given for, or
where the page is no longer what was seen; `--write` writes it anew.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from bench.compare_api.asked import Asked, everything
from bench.compare_api.differences import by_request
from bench.compare_api.heard import Heard, ask, client, read_answers, write_answers
from bench.compare_api.page import PAGE, page
from bench.stock_vllm import prepare, stock_server
from pixtral_cli import pixtral_stack

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "pixtral-mini"
START_SECONDS = 400.0
CONTEXT = 4096
STOCK = [
    *("--dtype", "float32", "--max-model-len", str(CONTEXT), "--max-num-seqs", "16"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "mistral"),
    *("--limit-mm-per-prompt", '{"image": 16}', "--served-model-name", MODEL.name),
]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the page anew")
    parser.add_argument("--log", type=Path, help="where to write both answers to each request")
    parser.add_argument(
        "--stock-answers",
        type=Path,
        metavar="FILE",
        help="take vLLM's answers from here, and ask vLLM only what is not there",
    )
    options = parser.parse_args()
    requests = everything()
    with tempfile.TemporaryDirectory() as temporary:
        theirs, version = _of_stock(requests, Path(temporary), options.stock_answers)
        ours = _of_ours(requests, Path(temporary))
    pairs = list(zip(requests, theirs, ours, strict=True))
    if options.log:
        lines = [f"{a.name}\t{t} {t.message}\t{o} {o.message}\n" for a, t, o in pairs]
        options.log.write_text("".join(lines), "utf-8")
    known = by_request()
    faults = [
        f"{name}: no request has this name" for name in known.keys() - {a.name for a in requests}
    ]
    for asked, stock, here in pairs:
        if stock.same(here) and asked.name in known:
            faults.append(f"{asked.name}: the answers are the same, and an argument is given")
        elif not stock.same(here) and asked.name not in known:
            faults.append(f"{asked.name}: vLLM {stock} {stock.message}; here {here} {here.message}")
    text = page(pairs, version)
    if options.write:
        PAGE.write_text(text, "utf-8")
    elif not PAGE.exists() or PAGE.read_text("utf-8") != text:
        faults.append(f"{PAGE.relative_to(ROOT)} is not what was seen: ARGS=--write writes it")
    differ = sum(not stock.same(here) for _, stock, here in pairs)
    print(f"{len(pairs)} requests: {len(pairs) - differ} answers are the same, {differ} differ")
    print("\n".join(faults))
    return 1 if faults else 0


def _of_stock(requests: list[Asked], temporary: Path, kept: Path | None) -> tuple[list[Heard], str]:
    """Its answers, and its version."""
    heard: dict[str, Heard] = {}
    version = ""
    if kept and kept.exists():
        version, heard = read_answers(kept)
    missing = [each for each in requests if each.digest not in heard]
    if missing:
        log = temporary / "stock.log"
        with stock_server(MODEL, prepare(), log, STOCK) as url, client(url) as http:
            version = http.get("/version").json()["version"]
            for asked in missing:
                heard[asked.digest] = ask(http, asked)
        if kept:
            write_answers(kept, version, heard)
    return [heard[each.digest] for each in requests], version


def _of_ours(requests: list[Asked], temporary: Path) -> list[Heard]:
    stack = pixtral_stack(
        MODEL,
        dtype="f32",
        http_listen="127.0.0.1:0",
        decoder_args=[f"--context-length={CONTEXT}"],
        log_dir=temporary,
        start_timeout=START_SECONDS,
    )
    with stack, client(f"http://{stack.http_target}") as http:
        return [ask(http, each) for each in requests]


if __name__ == "__main__":
    sys.exit(main())
