"""``slipstream simulate``: the figures add up, and nothing that it started is left behind."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slipstream.loadgen.simulate import MOCKS, House, Mock, SimulationError, bucket_bound, parse_metrics

DEADLINE_S = 20.0
SIMULATE = [sys.executable, "-W", "error", "-m", "slipstream", "simulate"]


@pytest.mark.parametrize("stream", [False, True])
def test_figures(stream: bool, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    done = subprocess.run(
        [*SIMULATE, "--requests", "300", "--concurrency", "20", "--json", file, *(["--stream"] if stream else [])],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for line in (r"Total Requests: 300", r"Success: +300", r"Errors: +0", r"Total Time: +\d+\.\d+ s", r"RPS: +\d+\.\d"):
        assert re.search(f"^{line}$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^Overhead P50: .* \(upper bound of its bucket", done.stdout, re.MULTILINE)
    assert re.search(r"^Overhead P99: ", done.stdout, re.MULTILINE)
    figures = json.loads(file.read_text())
    assert (figures["total_requests"], figures["success"], figures["errors"]) == (300, 300, 0)
    assert figures["rps"] == pytest.approx(300 / figures["total_time_s"], rel=0.01)
    assert 0 < figures["overhead_p50_us_at_most"] <= figures["overhead_p99_us_at_most"]
    providers = figures["providers"]
    assert set(providers) == {mock.name for mock in MOCKS}
    assert sum(row["requests"] for row in providers.values()) == 300
    assert sum(row["share"] for row in providers.values()) == pytest.approx(1, abs=0.001)
    assert providers["mock-fast"]["cost_usd"] > providers["mock-cheap"]["cost_usd"] > 0
    assert figures["cost_usd"] == pytest.approx(sum(row["cost_usd"] for row in providers.values()))
    assert ("ttft" in figures) == stream


def test_house_is_empty_afterwards() -> None:
    with House() as house:
        children = list(house._children)
        folder = house._folder.name
        assert len(children) == 3
        assert "slipstream_overhead_seconds" in house.metrics()
    assert all(child.returncode == 0 for child in children)
    assert not os.path.exists(folder)


def test_house_that_cannot_stand() -> None:
    """The second mock does not start: the first is ended, and the user is told why."""
    house = House((MOCKS[0], Mock("\n", 1.0, 1.0, 0.0, 0.0)))
    with pytest.raises(SimulationError, match="printable ASCII"), house:
        raise AssertionError("it stands")
    assert house._children == []
    assert not os.path.exists(house._folder.name)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def heed_interrupts() -> None:
    """A shell starts what it runs in the background with SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("flooding", "number", "codes"),
    [
        (True, signal.SIGINT, {0, 130}),
        (True, signal.SIGTERM, {0, 130}),
        (False, signal.SIGINT, {130}),
        (False, signal.SIGTERM, {143}),
    ],
)
def test_interrupted(flooding: bool, number: signal.Signals, codes: set[int]) -> None:
    """During the flood: the figures so far (130: before the first answer). While the parts start: at once. Nothing
    stays, either way.
    """
    with subprocess.Popen(
        [*SIMULATE, "--requests", "10000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    ) as child:
        try:
            until = time.monotonic() + DEADLINE_S
            while not (open_files(child.pid) > 100 if flooding else children_of(child.pid)):
                assert time.monotonic() < until
                time.sleep(0.01)
            parts = children_of(child.pid)
            child.send_signal(number)
            out, err = child.communicate(timeout=DEADLINE_S)
        except BaseException:
            child.terminate()  # it would go on for an hour
            raise
    assert err == ""
    assert child.returncode in codes
    assert len(parts) == 3 if flooding else parts
    assert ("Total Requests: " in out) == flooding
    assert not any(os.path.exists(f"/proc/{part}") for part in parts)


# the page's figures


def test_parse_metrics() -> None:
    page = '# HELP a b\n# TYPE a counter\na{x="1",le="+Inf"} 2.0\nb 1e-3\n'
    assert list(parse_metrics(page)) == [("a", {"x": "1", "le": "+Inf"}, 2.0), ("b", {}, 0.001)]


def test_bucket_bound() -> None:
    buckets = [(0.1, 49.0), (0.2, 50.0), (0.5, 98.0), (math.inf, 100.0)]
    assert [bucket_bound(buckets, q) for q in (0.4, 0.5, 0.51, 0.99)] == [0.1, 0.2, 0.5, math.inf]
    assert bucket_bound([(0.1, 0.0), (math.inf, 0.0)], 0.5) is None
    assert bucket_bound([], 0.5) is None
    assert bucket_bound([(0.1, 1.0), (0.1, 1.0), (math.inf, 3.0), (math.inf, 1.0)], 0.5) == 0.1, "of two workers"
