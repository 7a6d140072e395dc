"""Makes a data set of the published Parquet files.

    python -m bench.evals.convert chartqa --to bench/data ChartQA/data/test-*.parquet

Needs pyarrow, which the project does not (`pip install pyarrow`, in any environment that has the
project's folder as its working directory). Images are written as they come, byte for byte, each
once, into `TO/images`; the other columns go to `TO/NAME.jsonl`.
"""

import argparse
import hashlib
import importlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

NAMES: Final = ("mmmu", "mathvista", "chartqa", "docvqa", "vqav2", "mm_mt_bench")
_SUFFIXES: Final = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp"}
_ROWS_AT_ONCE: Final = 64


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.evals.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=NAMES, help="the benchmark")
    parser.add_argument("files", nargs="+", type=Path, help="the split's files, in their order")
    parser.add_argument("--to", required=True, type=Path, help="the directory of data")
    flags = parser.parse_args(arguments)
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        sys.exit("this needs pyarrow: pip install pyarrow")
    count = convert(flags.name, rows(parquet, flags.files), flags.to)
    print(f"{count} rows in {flags.to / flags.name}.jsonl")


def rows(parquet: Any, files: Iterable[Path]) -> Iterator[Mapping[str, Any]]:
    for file in files:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=_ROWS_AT_ONCE):
            yield from batch.to_pylist()


def convert(name: str, found: Iterable[Mapping[str, Any]], to: Path) -> int:
    """Writes the rows, and returns how many there are."""
    (to / "images").mkdir(parents=True, exist_ok=True)
    unfinished = to / f"{name}.jsonl.part"
    count = 0
    with unfinished.open("w", encoding="utf-8") as file:
        for row in found:
            written = {column: _value(value, to) for column, value in row.items()}
            file.write(json.dumps(written, ensure_ascii=False, default=str) + "\n")
            count += 1
    unfinished.replace(to / f"{name}.jsonl")
    return count


def _value(value: Any, to: Path) -> Any:
    """The name of an image's file; any other value as it is."""
    if not (isinstance(value, dict) and isinstance(value.get("bytes"), bytes)):
        return value
    data = value["bytes"]
    suffix = next((each for mark, each in _SUFFIXES.items() if data.startswith(mark)), ".image")
    name = f"images/{hashlib.sha256(data).hexdigest()[:24]}{suffix}"
    if not (to / name).exists():
        (to / name).write_bytes(data)
    return name


if __name__ == "__main__":
    main()
