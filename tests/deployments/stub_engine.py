"""Stands in for an engine: writes a status file as told by the name of its pipeline."""

from __future__ import annotations

import json
import os
import signal
import sys
import time


def main() -> None:
    with open(sys.argv[sys.argv.index("--document") + 1]) as file:
        document = json.load(file)
    manner = document["pipelines"][0]["id"]

    def say(phase: str, reason: str | None = None) -> None:
        status = {
            "replica": document["replica"],
            "revision": document["revision"],
            "phase": phase,
            "reason": reason,
            "pid": os.getpid(),
            "host": "127.0.0.1",
            "port": 5,
            "started_at": time.time(),
            "pipelines": [{"id": manner, "version": "v", "status": "Running"}],
            "models": [],
        }
        draft = document["status_file"] + ".new"
        with open(draft, "w") as out:
            json.dump(status, out)
        os.replace(draft, document["status_file"])

    if manner == "dies":
        print("something broke", file=sys.stderr)
        sys.exit(3)
    if manner == "broken":
        say("Error", "the model is no model")
        sys.exit(2)
    if manner == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if manner != "silent":
        say("Running")
    ballast = b"x" * (300 * 1024 * 1024) if manner == "greedy" else b""
    while True:
        time.sleep(60)
        del ballast


if __name__ == "__main__":
    main()
