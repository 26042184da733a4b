"""The document of a run of the fault matrix: ``python -m tests.scenarios.report FILE > docs/fault-matrix.md``.

``FILE`` holds a line of JSON for each row and pair of listener and transport (``SLIPSTREAM_MATRIX=FILE pytest
tests/scenarios``); of several lines for one, the last counts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.scenarios.matrix import LIMITS, SLACK_S

HEAD = """# Fault matrix

What the gateway does when something breaks, as played by `tests/scenarios` over the whole gateway: a client of raw
bytes, a real listener, a real transport, an upstream that misbehaves byte by byte. Generated; do not edit:

    SLIPSTREAM_MATRIX=/tmp/matrix.jsonl pytest tests/scenarios
    python -m tests.scenarios.report /tmp/matrix.jsonl > docs/fault-matrix.md

Limits are shrunk for the run: {limits}.
"Time" is the measured time that came nearest to the bound of its scenario, and that bound (a run allows {slack:g} s on
top, for a busy machine). "Counted" is what each row checks of `slipstream_upstream_attempts_total` and
`slipstream_failovers_total`. Every row also checks that each request is counted once, that nothing stays in flight,
that a request makes three attempts at most, that no key is in an answer, a log line or a metric, and that no task and
no file descriptor is left.

Over: listener and transport, native (n) or aiohttp (a), as in `n+n`.
"""
MARKS = {"pass": "pass", "xfail": "**missing**", "xpass": "pass (was missing)", "fail": "**FAIL**"}


def main(name: str) -> None:
    runs: dict[tuple[str, str, str], dict[str, Any]] = {}
    for line in Path(name).read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        runs[run["id"], run["title"], f"{run['listener'][0]}+{run['transport'][0]}"] = run
    rows: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = {}
    for (id, title, over), run in sorted(runs.items(), key=lambda item: (int(item[0][0][2:]), len(item[0][1]))):
        rows.setdefault((id, title), []).append((over, run))
    limits = ", ".join(f"{name} {seconds:g}" for name, seconds in LIMITS.items())
    print(HEAD.format(limits=limits, slack=SLACK_S))
    print("| id | scenario | over | result | time | counted |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (id, title), played in rows.items():
        print(f"| {id} | {title} | {_over(played)} | {_result(played)} | {_time(played)} | {_counted(played)} |")
    missing = {
        (id, run["missing"]) for (id, _), played in rows.items() for _, run in played if run["status"] == "xfail"
    }
    if missing:
        print("\n## Missing\n")
        for id, what in sorted(missing):
            print(f"- {id}: {what.removeprefix('RESILIENCE: ')}")
    passed = sum(run["status"] in ("pass", "xpass") for run in runs.values())
    print(f"\n{len({id for id, _ in rows})} scenarios, {len(runs)} runs, {passed} of them pass.")


def _over(played: list[tuple[str, dict[str, Any]]]) -> str:
    return " ".join(sorted(over for over, _ in played))


def _result(played: list[tuple[str, dict[str, Any]]]) -> str:
    found = {run["status"] for _, run in played}
    if len(found) == 1:
        return MARKS[found.pop()]
    return ", ".join(f"{over}: {MARKS[run['status']]}" for over, run in sorted(played, key=lambda one: one[0]))


def _time(played: list[tuple[str, dict[str, Any]]]) -> str:
    worst = max((run for _, run in played), key=lambda run: run["time_s"] / run["bound_s"])
    if not worst["time_s"]:
        return "-"
    return f"{worst['time_s'] * 1000:.1f} ms of {worst['bound_s'] * 1000:g}"


def _counted(played: list[tuple[str, dict[str, Any]]]) -> str:
    return ", ".join(dict.fromkeys(name for _, run in played for name in run["counted"])) or "-"


if __name__ == "__main__":
    main(sys.argv[1])
