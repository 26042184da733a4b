"""Asks ``/health`` of the port in ``argv`` each 5 ms until standard input ends, then prints the seconds each took.

A process of its own: a thread of the test would wait for the test's own work. Time counts from when a probe was due.
"""

from __future__ import annotations

import http.client
import json
import select
import sys
import time

PERIOD_S = 0.005


def main() -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=30)
    waits = []
    print("ready", flush=True)
    due = time.perf_counter()
    while not select.select([sys.stdin], [], [], max(0.0, due - time.perf_counter()))[0]:
        connection.request("GET", "/health")
        connection.getresponse().read()
        now = time.perf_counter()
        waits.append(now - due)
        due = max(due + PERIOD_S, now)
    connection.close()
    json.dump(waits, sys.stdout)


if __name__ == "__main__":
    main()
