"""Tables, plots and the history, from the figures of a run.

    python bench/e2e/report.py FILE.json       # what run.py --report does at the end of a run

Writes into bench/results/: ``latest.json`` (all figures and histograms), ``latest.md``, ``cpu.svg``, ``memory.svg``,
``latency.svg``, and one more entry in ``history.md``: each figure of ours before (the ``latest.json`` that was there)
and after. A figure that the new run did not measure is left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))

from bench.e2e import plot, resilience, translate
from bench.e2e.dialects import TITLES
from bench.e2e.peers import everyone

RESULTS = Path(__file__).parents[1] / "results"
COSTS = ("unary", "100k", "1m", "sse", *translate.MODES, resilience.MODE)
NAMES = {"unary": "1.1 KB", "100k": "100 KB", "1m": "1 MB", "sse": "SSE event", "translate unary": "1.1 KB translated"}
NAMES |= {resilience.MODE: "1.1 KB with and without resilience"}
NAMES |= {f"translate {name}": f"{title} event translated" for name, title in TITLES.items()}
EVENTS = ("sse", *(f"translate {name}" for name in TITLES))
"""Modes whose unit is an event of a stream, not a request."""
OURS = "slipstream"
RIVALS = ("litellm", "portkey")

Rows = Mapping[str, Any]
Result = Mapping[str, Any]


def cost_key(mode: str) -> str:
    return "cpu_us_per_event" if mode in EVENTS else "cpu_us_per_request"


def came_through(result: Result) -> dict[str, Rows]:
    """The modes without the rows of peers that failed in them."""
    return {
        mode: {name: row for name, row in rows.items() if "failed" not in row} for mode, rows in result["modes"].items()
    }


def title(name: str) -> str:
    peer = everyone().get(name)
    return peer.title if peer else resilience.TITLES.get(name, name)


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] + ["---:"] * (len(lines[0]) - 1))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def markdown(result: Result) -> str:
    """The whole report."""
    this, found = result["machine"], came_through(result)
    where = (
        f"{this['cpu']}, {this['cores']} cores (proxy on {this['proxy_core']}, load and upstream on "
        f"{this['load_core']}; load average before: {this['load_before']:.2f}), {this['kernel']}"
    )
    versions = ", ".join(f"{name} {version}" for name, version in this["versions"].items())
    parts = [
        f"{this['date']}, commit {this['commit']}. {where}, Python {this['python']}, {versions}; "
        f"compiled: {this['compiled']}.\n\n    {this['command']}\n"
    ]
    for mode in COSTS:
        if mode in found:
            parts += [f"### CPU time: {NAMES[mode]}\n", cost_table(found[mode], mode)]
    sections: tuple[tuple[str, str, Callable[[Rows], str]], ...] = (
        ("latency", "Added latency, through minus direct", latency_table),
        ("idle", "Idle keep-alive connections", idle_table),
        ("streams", "Streams in flight", streams_table),
        ("own", "The gateway's own time", own_table),
    )
    for mode, heading, make in sections:
        if mode in found:
            parts += [f"### {heading}\n", make(found[mode])]
    out = [
        f"* {title(name)} is not in {mode}: `{row['failed']}`"
        for mode, rows in result["modes"].items()
        for name, row in rows.items()
        if "failed" in row
    ]
    return "\n".join([*parts, *out, ""] if out else parts)


def cost_table(rows: Rows, mode: str) -> str:
    key, unit = cost_key(mode), "event" if mode in EVENTS else "request"
    base = rows.get("nginx", {}).get(key)
    rivals = [name for name in RIVALS if name in rows]
    head = [
        "proxy", f"us CPU per {unit}", "x nginx", f"{unit}s per CPU second",
        *(f"x {title(name)}'s" for name in rivals), "p50 us", "p99 us", "RSS MB", "PSS MB", "start ms", "bad",
    ]  # fmt: skip
    lines = []
    for name, row in rows.items():
        ratios = [f"{rows[rival][key] / row[key]:.1f}" for rival in rivals]
        against = f"{row[key] / base:.2f}" if base else ""
        start = f"{row['start_ms']:.0f}" if "start_ms" in row else ""
        lines.append([
            title(name), f"{row[key]:.1f}", against, f"{row['per_cpu_second']:,}", *ratios, f"{row['p50_us']:.0f}",
            f"{row['p99_us']:.0f}", row["rss_mb"], row["pss_mb"], start, row["bad"],
        ])  # fmt: skip
    note = "\np50 and p99 are those of the first event of a stream.\n" if mode in EVENTS else ""
    if mode in translate.BARS:
        note += (
            f"\nnginx relays the upstream's bytes, ours are translated. Bar: {translate.BARS[mode]:g} times nginx.\n"
        )
    if mode == resilience.MODE:
        note += resilience.note(rows)
    return table(head, lines) + note


def latency_table(rows: Rows) -> str:
    labels = list(rows["direct"])
    labels = [label for label in labels if label != "bad"]
    head = ["us", *(f"{q}, {label} conn." for label in labels for q in ("p50", "p99"))]
    lines = [["direct, not added"] + [f"{rows['direct'][at][q]:.0f}" for at in labels for q in ("p50_us", "p99_us")]]
    for name, row in rows.items():
        if name != "direct":
            cells = [f"{row[at][q]:+.0f}" for at in labels for q in ("added_p50_us", "added_p99_us")]
            lines.append([title(name), *cells])
    return table(head, lines) + "\n64 connections saturate the machine; paced, they send 1,000 requests a second.\n"


def idle_table(rows: Rows) -> str:
    keys = ("pss_before_mb", "pss_after_mb", "bad")
    return table(
        ["proxy", "connections", "bytes of PSS each", "PSS before MB", "PSS after MB", "bad"],
        [
            [title(n), r["connections"], f"{r['bytes_per_connection']:,}", *(r[k] for k in keys)]
            for n, r in rows.items()
        ],
    )


def streams_table(rows: Rows) -> str:
    return table(
        ["proxy", "streams", "PSS MB", "RSS MB", "bytes of PSS each", "bad"],
        [
            [title(n), r["streams"], r["pss_mb"], r["rss_mb"], f"{r['bytes_per_stream']:,}", r["bad"]]
            for n, r in rows.items()
        ],
    )


def own_table(rows: Rows) -> str:
    lines = []
    for name, row in rows.items():
        for kind in ("busy", "saturated") if name != "micro" else ():
            r = row[kind]
            bounds = [at_most(r[q]) for q in ("p50_us_at_most", "p99_us_at_most")]
            lines.append([f"{title(name)}, {kind}", *bounds, r["mean_us"], f"{r['requests_per_s']:,}", r["bad"]])
    text = table(["100 concurrent requests", "p50 us", "p99 us", "mean us", "requests/s", "bad"], lines)
    text += "\nBusy: the upstream thinks for 50 ms. Saturated: it answers at once. Bounds are those of the buckets.\n"
    micro = rows["micro"]
    if "missing" in micro:
        return text + f"\nDecision and statistics: {micro['missing']}.\n"
    decisions = ", ".join(f"{ns:.0f} ns over {targets} targets" for targets, ns in micro["decision_ns"].items())
    return text + f"\nA decision: {decisions}. An update of the statistics: {micro['stats_update_ns']:.0f} ns.\n"


def at_most(bound_us: float | None) -> str:
    return f"<= {bound_us:.0f}" if bound_us is not None else "over the last"


def headline(result: Result) -> dict[str, float]:
    """The figures of ours that the history follows; smaller is better for all of them."""
    found = came_through(result)
    figures: dict[str, float] = {}
    for mode in COSTS:
        rows = found.get(mode, {})
        if OURS in rows:
            cost = rows[OURS][cost_key(mode)]
            figures[f"us CPU, {NAMES[mode]}"] = cost
            for rival in ("nginx",):
                if rival in rows:
                    figures[f"x nginx, {NAMES[mode]}"] = round(cost / rows[rival][cost_key(mode)], 2)
    if OURS in found.get(resilience.MODE, {}):
        figures["x resilience off"] = found[resilience.MODE][OURS]["x_off"]
    if OURS in found.get("latency", {}):
        for label, q in (("1", "p50"), ("1", "p99"), ("64 paced", "p50"), ("64 paced", "p99")):
            figures[f"added {q} us, {label} conn."] = found["latency"][OURS][label][f"added_{q}_us"]
    for mode, key, text in (
        ("unary", "rss_mb", "RSS MB under load"),
        ("unary", "start_ms", "start to first 200, ms"),
        ("idle", "bytes_per_connection", "bytes per idle connection"),
        ("streams", "pss_mb", "PSS MB, streams in flight"),
    ):
        if OURS in found.get(mode, {}):
            figures[text] = found[mode][OURS][key]
    if OURS in found.get("own", {}):
        figures["own time, mean us, busy"] = found["own"][OURS]["busy"]["mean_us"]
        if "stats_update_ns" in found["own"]["micro"]:
            figures["decision, ns, 1,000 targets"] = found["own"]["micro"]["decision_ns"]["1000"]
            figures["statistics update, ns"] = found["own"]["micro"]["stats_update_ns"]
    return figures


def history_entry(before: Result | None, after: Result) -> str:
    this = after["machine"]
    old, new = headline(before) if before else {}, headline(after)
    lines = []
    for name, value in new.items():
        was = old.get(name)
        change = f"{(value / was - 1) * 100:+.0f} %" if was else ""
        lines.append([name, was if was is not None else "", value, change])
    then = before["machine"] if before else None
    since = f"before: {then['commit']} of {then['date'][:10]}" if then else "the first entry"
    return (
        f"\n## {this['date']}, {this['commit']}: {after.get('label') or 'no label'}\n\n{this['cpu']}; {since}; "
        f"`{this['command']}`\n\n" + table(["Slipstream", "before", "after", "change"], lines)
    )


def write(result: Result, folder: Path = RESULTS) -> list[Path]:
    """The files that were written."""
    folder.mkdir(exist_ok=True)
    latest, history = folder / "latest.json", folder / "history.md"
    before = json.loads(latest.read_text()) if latest.exists() else None
    texts = {folder / "latest.md": "# The last run of bench/e2e/run.py\n\n" + markdown(result)}
    found = came_through(result)
    costs = {NAMES[mode]: by_peer(found[mode], cost_key(mode)) for mode in COSTS if mode in found}
    if costs:
        texts[folder / "cpu.svg"] = plot.bars("CPU time of the proxy per request or event (us, log scale)", costs)
    memory = {
        text: by_peer(found[mode], key)
        for mode, key, text in (
            ("unary", "rss_mb", "RSS under load"),
            ("streams", "pss_mb", "PSS, streams in flight"),
            ("idle", "pss_after_mb", "PSS, idle connections"),
        )
        if mode in found
    }
    if memory:
        texts[folder / "memory.svg"] = plot.bars("Memory (MB, log scale)", memory)
    if "latency" in found:
        curves = {title(name): row["1"]["histogram"] for name, row in found["latency"].items()}
        texts[folder / "latency.svg"] = plot.curves("Latency of a 1.1 KB request, one connection (us, log)", curves)
    if not history.exists():
        history.write_text("# History\n\nEach entry: our figures before and after. Written by bench/e2e/report.py.\n")
    with history.open("a") as out:
        out.write(history_entry(before, result))
    for path, text in texts.items():
        path.write_text(text)
    latest.write_text(json.dumps(result) + "\n")
    return [*texts, latest, history]


def by_peer(rows: Rows, key: str) -> dict[str, float]:
    return {title(name): float(row[key]) for name, row in rows.items() if key in row}


if __name__ == "__main__":
    for written in write(json.loads(Path(sys.argv[1]).read_text())):
        print(f"wrote {written}")
