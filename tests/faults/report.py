"""The result of a run, as a table."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from tests.faults.checker import Violation
from tests.faults.history import FINISHED, History, Window


def table(history: History) -> str:
    """Markdown: a row a fault, with the requests that were under way at some time of it."""
    rows = defaultdict[str, list[Window]](list)
    for window in history.windows:
        rows[window.fault].append(window)
    lines = [
        "| fault | times | requests meanwhile | told a status | slowest answer, s "
        "| seconds to recover |",
        "|---|---|---|---|---|---|",
    ]
    for name, windows in sorted(rows.items()):
        met = [
            record
            for record in history.records
            if any(window.overlaps(record) for window in windows)
        ]
        failed = Counter(
            record.outcome
            for record in met
            if any(record.outcome in window.may_end_with(record) for window in windows)
        )
        told = ", ".join(f"{number} {code}" for code, number in failed.most_common()) or "0"
        took = sorted(
            window.recovered - window.ended
            for window in windows
            if window.recovered is not None and window.ended is not None
        )
        span = f"{took[0]:.1f}" if took else "never"
        if len(took) > 1:
            span += f" to {took[-1]:.1f}"
        slowest = max((record.seconds for record in met if record.outcome == FINISHED), default=0.0)
        row = (name, len(windows), len(met), told, f"{slowest:.1f}", span)
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def summary(history: History, violations: Sequence[Violation]) -> str:
    kinds = Counter(violation.kind for violation in violations)
    outcomes = Counter(record.outcome for record in history.records)
    return (
        f"{len(history.windows)} faults, {len(history.records)} requests: "
        f"{kinds['wrong']} wrong, {kinds['crossed']} crossed tenants, "
        f"{kinds['lost'] + kinds['unended']} lost, {kinds['slow']} slow; "
        f"{kinds['grows']} things grow, {kinds['logged']} are in a log; "
        f"at {history.pace:.1f} times an ordinary pace; "
        f"ends: {', '.join(f'{number} {name}' for name, number in outcomes.most_common())}"
    )
