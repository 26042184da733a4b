"""What the gateway costs beside nginx, HAProxy, LiteLLM and Portkey, in one run on one machine.

    python bench/e2e/run.py [--quick] [--peers nginx,slipstream] [--modes unary,sse] [--json FILE] [--report]

bench/README.md tells what each mode measures and how to have the other gateways take part. Exit code 1: an answer was
not the upstream's, a process failed, or, with --quick, a bar was missed. Needs Linux, nginx and wrk; HAProxy if asked.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))  # at the end: an installed slipstream goes first

from bench.e2e import modes, report, resilience, standing, translate
from bench.e2e.peers import Peer, everyone
from bench.e2e.proc import Cores, Failed

MODES = ("unary", "100k", "1m", "sse", "translate", "resilience", "latency", "idle", "streams", "own")
QUICK_PEERS, QUICK_MODES = "nginx,slipstream", "unary,sse"
QUICK = modes.Effort(rounds=2, seconds=1, streams=1)
QUICK_BARS = {"unary": 6.0, "sse": 4.0, **translate.BARS}
"""Times nginx. Loose, but for translation: CI machines are shared, and a ratio of 6 has lost what the data plane is
for."""
PACKAGES = ("slipstream-gateway", "aiohttp", "uvloop", "httptools", "orjson")


def main() -> int:
    args = arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))  # so that the processes are stopped on the way out
    cores = Cores()
    if cores.shared:
        modes.say("one core for proxy, load and upstream: latencies mean nothing here, CPU times little")
    try:
        peers, names = chosen(args.peers), listed(args.modes, MODES, "mode")
        effort = QUICK if args.quick else modes.Effort(args.rounds, args.seconds)
        began = time.monotonic()
        result: dict[str, Any] = {
            "machine": machine(peers, cores),
            "label": args.label,
            "effort": dataclasses.asdict(effort),
        }
        cores.take_load()
        result["modes"] = measure(peers, cores, names, effort)
        result["seconds"] = round(time.monotonic() - began, 1)
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(report.markdown(result))
    if args.json:
        args.json.write_text(json.dumps(result) + "\n")
    if args.report:
        for path in report.write(result):
            print(f"wrote {path}")
    problems = missed(result, QUICK_BARS if args.quick else {})
    for problem in problems:
        print(f"MISSED  {problem}")
    return 1 if problems else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="15 s: unary and sse, nginx and ours, loose bars (CI)")
    parser.add_argument("--peers", help="some of nginx,haproxy,slipstream,reference,litellm,portkey [all there are]")
    parser.add_argument("--modes", help=f"some of {','.join(MODES)} [all]")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one to warm up [5]")
    parser.add_argument("--seconds", type=int, default=4, help="of a round [4]")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything here, histograms included")
    parser.add_argument("--report", action="store_true", help="write table, plots and history into bench/results/")
    parser.add_argument("--label", default="", help="what was changed, for the history")
    args = parser.parse_args()
    args.peers = args.peers or (QUICK_PEERS if args.quick else None)
    args.modes = args.modes or (QUICK_MODES if args.quick else ",".join(MODES))
    if args.rounds < 1 or args.seconds < 1:
        parser.error("--rounds and --seconds are at least 1")
    return args


def listed(text: str, known: tuple[str, ...], what: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise Failed(f"no {what} is called {name!r}; there are {', '.join(known)}")
    return [name for name in known if name in names]


def chosen(asked: str | None) -> list[Peer]:
    """The peers that were asked for, which must be there; or all that are, with a word about the others."""
    known = everyone()
    names = listed(asked, tuple(known), "peer") if asked else list(known)
    for tool in ("nginx", "wrk", "taskset"):
        if shutil.which(tool) is None:
            raise Failed(f"{tool} is not installed (nginx is the upstream of the fast modes, wrk the load)")
    for name in names:
        if known[name].missing and asked:
            raise Failed(f"{name}: {known[name].missing}; see bench/README.md")
        if known[name].missing:
            modes.say(f"without {name}: {known[name].missing}")
    return [known[name] for name in names if not known[name].missing]


def measure(peers: list[Peer], cores: Cores, names: list[str], effort: modes.Effort) -> dict[str, Any]:
    found: dict[str, Any] = {}
    fast = [name for name in names if name in ("unary", "100k", "1m", "latency")]
    if fast:
        found |= modes.unary(peers, cores, fast, effort)
    if "sse" in names:
        found["sse"] = modes.sse(peers, cores, effort, [name for name in ("unary", "100k", "1m") if name in names])
    if "translate" in names:
        found |= translate.measure(peers, cores, effort)
    if "resilience" in names:
        found |= resilience.measure(peers, cores, effort)
    if "idle" in names:
        found["idle"] = standing.idle(peers, cores)
    if "streams" in names:
        found["streams"] = standing.streams(peers, cores)
    if "own" in names:
        found["own"] = standing.own(peers, cores, effort)
    return found


def missed(result: dict[str, Any], bars: dict[str, float]) -> list[str]:
    """Bad answers of nginx, HAProxy or ours, and bars that were missed. Those of the rivals are in the table."""
    known = everyone()
    problems = [
        f"{mode}: {name}: {values['bad']} bad answers"
        for mode, rows in result["modes"].items()
        for name, values in rows.items()
        if values.get("bad") and (name not in known or known[name].exact)
    ]
    for mode, bar in bars.items():
        rows = result["modes"].get(mode, {})
        key = report.cost_key(mode)
        if "nginx" in rows and "slipstream" in rows:
            ratio = rows["slipstream"][key] / rows["nginx"][key]
            if ratio > bar:
                problems.append(f"{mode}: {ratio:.2f} times nginx's CPU time, bar {bar:g}")
    return problems + resilience.missed(result["modes"])


def machine(peers: list[Peer], cores: Cores) -> dict[str, Any]:
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    from slipstream._fast import COMPILED

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "proxy_core": cores.proxy,
        "load_core": cores.load,
        "load_before": os.getloadavg()[0],
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES} | programs(peers),
        "commit": said(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"], r"(\S+)"),
        "compiled": COMPILED,
        "command": "python " + " ".join(sys.argv),
    }


def programs(peers: list[Peer]) -> dict[str, str]:
    """Versions of what is not a package of ours."""
    found = {"nginx": said(["nginx", "-v"], r"nginx/(\S+)"), "wrk": said(["wrk", "-v"], r"wrk \S*?([\d.]+)")}
    for peer in peers:
        if peer.name == "haproxy":
            found["haproxy"] = said(["haproxy", "-v"], r"version (\S+)")
        elif peer.name == "litellm":
            python = Path(os.environ["LITELLM_BIN"]).with_name("python")
            code = "from importlib.metadata import version; print(version('litellm'))"
            found["litellm"] = said([str(python), "-c", code], r"(\S+)")
        elif peer.name == "portkey":
            package = Path(os.environ["PORTKEY_BIN"]).resolve().parents[1] / "package.json"
            found["portkey"] = json.loads(package.read_text())["version"] if package.exists() else "unknown"
            found["node"] = said(["node", "--version"], r"v(\S+)")
    return found


def said(command: list[str], pattern: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else "unknown"


if __name__ == "__main__":
    sys.exit(main())
