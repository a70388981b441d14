"""Measure the data plane: `python -m bench.dataplane [--seconds 5] [--rounds 5] [--work FOLDER] [--out FILE]`.

Server and load have a core each; the rounds of all servers are interleaved, and medians are shown. Our engine writes
its log and checks tokens in every run that does not say otherwise. Needs `wrk`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import load, models, peers
from bench.load import Request, Result
from bench.ours import Engine, Server, Tokens, gateway

SERVER_CORE, LOAD_CORE = 0, 1
GATEWAY_PORT = 18_301
FOREST_WIDTH = 18
ARROW = "application/vnd.apache.arrow.file"
RECORDS = "application/json; format=pandas-records"
FULL = "?dataset%5B%5D=%2A&dataset.exclude%5B%5D=metadata&dataset.separator=."
OUTPUTS = "?dataset%5B%5D=out&dataset.separator=."
RAW = """
import sys, time, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
node = session.get_inputs()[0]
shape = [int(sys.argv[2])] + [int(size) for size in node.shape[1:]]
rows = numpy.random.default_rng(0).standard_normal(shape).astype("float32")
session.run(None, {node.name: rows})
end, count, started = time.perf_counter() + float(sys.argv[3]), 0, time.perf_counter()
busy = time.process_time()
while time.perf_counter() < end:
    session.run(None, {node.name: rows})
    count += 1
print(count / (time.perf_counter() - started), count / (time.process_time() - busy))
"""

_RUNS = "| run | per second | per second of processor time | median latency | 99 % below |"

Job = Callable[[], Result]


class Bench:
    """Everything that is set up once."""

    def __init__(self, work: Path, seconds: float, *, with_peers: bool) -> None:
        self.work = work
        self.seconds = seconds
        self.model = models.dense(work / "dense.onnx")
        self.images = models.convolutions(work / "convolutions.onnx")
        self.boosted = models.trees(work / "boosted.onnx", models.WIDTH, count=32, depth=3)
        self.forest = models.trees(work / "forest.onnx", FOREST_WIDTH, count=60, depth=6)
        self._write_bodies()
        tokens, one = Tokens(work), self.bodies["records", 1]
        self.handoff = str(work / "handoff.sock")
        self.engine = Engine(work / "ours", self.model, SERVER_CORE, tokens, one, log=True, handoff_socket=self.handoff)
        self.cold_start_s = self.engine.cold_start_s
        self.idle_mib = peers.resident_mib(self.engine.process.pid)
        self.unlogged = Engine(work / "unlogged", self.model, SERVER_CORE, tokens, one, log=False)
        self.imaging = Engine(work / "imaging", self.images, SERVER_CORE, tokens, self.bodies["image", 1], log=True)
        self.boosting = Engine(work / "boosting", self.boosted, SERVER_CORE, tokens, one, log=True)
        forest_row = self.bodies["forest", 1]
        self.foresting = Engine(work / "foresting", self.forest, SERVER_CORE, tokens, forest_row, log=True)
        self.server = Server(work / "server", self.model, SERVER_CORE)
        self.gateway = gateway(GATEWAY_PORT, self.handoff, SERVER_CORE)
        self.peers = peers.known_peers() if with_peers else []

    def prepare_peers(self) -> None:
        """Install and start the peers; one that cannot be keeps the reason."""
        for peer in self.peers:
            print(f"preparing {peer.name}", flush=True)
            peers.install(peer, self.work)
            if not peer.reason:
                peers.start(peer, self.work, self.model, self.bodies[peer.form, 1], SERVER_CORE)
            if peer.reason:
                print(f"  {peer.reason}")

    def _write_bodies(self) -> None:
        self.bodies: dict[tuple[str, int], Path] = {}
        for count in (1, 1000):
            rows = models.rows(count)
            self.bodies["forest", count] = self.work / f"forest-{count}"
            self.bodies["forest", count].write_bytes(models.arrow_body(models.rows(count, FOREST_WIDTH)))
            v2 = {"name": "input", "shape": list(rows.shape), "datatype": "FP32", "data": rows.reshape(-1).tolist()}
            for form, raw in (
                ("records", models.records_body(rows)),
                ("arrow", models.arrow_body(rows)),
                ("v2", json.dumps({"inputs": [v2]}).encode()),
                ("tensor", json.dumps({"tensor": rows.tolist()}).encode()),
            ):
                self.bodies[form, count] = self.work / f"{form}-{count}"
                self.bodies[form, count].write_bytes(raw)
        self.bodies["image", 1] = self.work / "image-1"
        self.bodies["image", 1].write_bytes(models.arrow_body(models.rows(1, 3 * 224 * 224)))

    def ours(
        self,
        form: str,
        count: int,
        query: str,
        connections: int,
        engine: Engine | Server | None = None,
        url: Callable[[], str] | None = None,
    ) -> Job:
        """Return a run against our engine."""
        is_arrow = form in ("arrow", "image", "forest")
        kind = {"Content-Type": ARROW, "Accept": ARROW} if is_arrow else {"Content-Type": RECORDS}

        def job() -> Result:
            server = engine or self.engine
            request = Request((url() if url else server.url) + query, self.bodies[form, count], kind | server.headers)
            return load.run(request, connections, self.seconds, LOAD_CORE, server.pids)

        return job

    def peer(self, peer: peers.Peer, count: int, connections: int) -> Job:
        """Return a run against a peer."""
        request = Request(peer.url, self.bodies[peer.form, count], {"Content-Type": "application/json"})
        pids = [peer.process.pid] if peer.process else []
        return lambda: load.run(request, connections, self.seconds, LOAD_CORE, pids)

    def raw(self, model: Path, count: int) -> Job:
        """Return a run of the bare session."""

        def job() -> Result:
            arguments = [str(model), str(count), str(self.seconds)]
            done = subprocess.run(
                ["taskset", "-c", str(SERVER_CORE), sys.executable, "-c", RAW, *arguments],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            rate, by_processor = map(float, done.stdout.split())
            return Result(rate, 1e6 / rate, 1e6 / rate, by_processor)

        return job

    def jobs(self) -> dict[str, Job]:
        """Return all runs by name."""
        external = f"http://127.0.0.1:{GATEWAY_PORT}/v1/api/pipelines/infer/bench-1/bench"
        found = {
            "ours json 1 c1": self.ours("records", 1, FULL, 1),
            "ours json 1 c16": self.ours("records", 1, FULL, 16),
            "ours json 1 c64": self.ours("records", 1, FULL, 64),
            "ours json 1 c64 handed over": self.ours("records", 1, FULL, 64, url=lambda: external),
            "server json 1 c64 own port": self.ours("records", 1, FULL, 64, self.server, lambda: self.server.own_url),
            "server json 1 c64 external": self.ours("records", 1, FULL, 64, self.server),
            "server json 1 c1 external": self.ours("records", 1, FULL, 1, self.server),
            "ours json 1 c64 no log": self.ours("records", 1, FULL, 64, self.unlogged),
            "ours json 1000 outputs": self.ours("records", 1000, OUTPUTS, 16),
            "ours json 1000 full": self.ours("records", 1000, FULL, 16),
            "ours json 1000 full no log": self.ours("records", 1000, FULL, 16, self.unlogged),
            "ours arrow 1000 outputs": self.ours("arrow", 1000, OUTPUTS, 16),
            "ours arrow 1000 full": self.ours("arrow", 1000, FULL, 16),
            "ours arrow 1000 outputs no log": self.ours("arrow", 1000, OUTPUTS, 16, self.unlogged),
            "ours boosted 1000": self.ours("arrow", 1000, OUTPUTS, 16, self.boosting),
            "ours forest 1000": self.ours("forest", 1000, OUTPUTS, 16, self.foresting),
            "ours image": self.ours("image", 1, OUTPUTS, 4, self.imaging),
            "raw 1": self.raw(self.model, 1),
            "raw 1000": self.raw(self.model, 1000),
            "raw boosted 1000": self.raw(self.boosted, 1000),
            "raw forest 1000": self.raw(self.forest, 1000),
            "raw image": self.raw(self.images, 1),
        }
        for peer in self.peers:
            if not peer.reason:
                found[f"{peer.name} json 1 c16"] = self.peer(peer, 1, 16)
                found[f"{peer.name} json 1 c1"] = self.peer(peer, 1, 1)
                found[f"{peer.name} json 1000"] = self.peer(peer, 1000, 16)
        return found

    def measure(self, rounds: int) -> dict[str, Result]:
        """Run every job once per round, and return the medians."""
        seen: dict[str, list[Result]] = {}
        jobs = self.jobs()
        for number in range(rounds):
            for name, job in jobs.items():
                if name.startswith("ours") and "arrow" in name:
                    self.engine.clear_log()
                elif name in ("ours boosted 1000", "ours forest 1000"):
                    (self.boosting if "boosted" in name else self.foresting).clear_log()
                seen.setdefault(name, []).append(job())
                print(f"round {number + 1} {name}: {seen[name][-1].per_second:,.0f}/s", flush=True)
        return {
            name: Result(*(statistics.median(getattr(one, part) for one in found) for part in Result.__annotations__))
            for name, found in seen.items()
        }

    def close(self) -> None:
        """Stop everything that was started."""
        self.gateway.terminate()
        self.gateway.wait()
        for engine in (self.engine, self.unlogged, self.imaging, self.boosting, self.foresting):
            engine.stop()
        self.server.stop()
        for peer in self.peers:
            peers.stop(peer)


def report(bench: Bench, found: dict[str, Result], rounds: int) -> str:
    """Return the page that is kept in the docs."""
    import numpy
    import onnxruntime
    import pyarrow
    import uvloop

    def rate(name: str) -> float:
        return found[name].per_second if name in found else float("nan")

    def by_processor(name: str) -> float:
        return found[name].per_cpu_second if name in found else float("nan")

    running = [peer for peer in bench.peers if not peer.reason]

    def best(job: str) -> str:
        return max((f"{peer.name} {job}" for peer in running), key=rate, default="")

    busy = os.getloadavg()[0]
    lines = [
        "# Performance",
        "",
        "Written by `make bench` (`python -m bench.dataplane`). Server and load have a core each, the rounds of all "
        f"servers are interleaved; medians of {rounds} rounds of {bench.seconds:g} s. Our engine writes the inference "
        "log and checks a signed token with every request, unless it says otherwise; replies of ours carry the inputs "
        "(`full`) or the outputs alone. The model is a dense network, 29 numbers in and one out; a row of JSON has "
        "numbers of ten decimals. `handed over` is by way of the least that can stand before an engine, `external` by "
        "the whole server's URL. Compare ratios, not absolutes; those by processor time count what the server's "
        "processes used and suffer less from neighbours.",
        "",
        f"Machine: {_cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}; load average while "
        f"measuring {busy:.1f}. "
        f"Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}, pyarrow {pyarrow.__version__}, "
        f"numpy {numpy.__version__}, uvloop {uvloop.__version__}. "
        f"{time.strftime('%Y-%m-%d', time.gmtime())}.",
        "",
        "## Against other Python servers",
        "",
        "| requests per second (median latency) | JSON, 1 row, 16 connections | JSON, 1 row, 1 connection "
        "| JSON, 1,000 rows, 16 connections | cold start | idle memory |",
        "| --- | --- | --- | --- | --- | --- |",
        _row("Potoroo, full records", found, "ours json 1 c16", "ours json 1 c1", "ours json 1000 full")
        + f" {bench.cold_start_s:.2f} s | {bench.idle_mib:.0f} MiB |",
        _row("Potoroo, outputs only", found, None, None, "ours json 1000 outputs") + " | |",
    ]
    for peer in running:
        memory = peers.resident_mib(peer.process.pid) if peer.process else 0.0
        names = (f"{peer.name} json 1 c16", f"{peer.name} json 1 c1", f"{peer.name} json 1000")
        lines.append(
            _row(f"{peer.name} {peer.version}", found, *names) + f" {peer.cold_start_s:.1f} s | {memory:.0f} MiB |"
        )
    lines += [f"| {peer.name} | {peer.reason} | | | | |" for peer in bench.peers if peer.reason]
    one, many, arrow = "JSON, 1 row", "JSON, 1,000 rows", "Arrow, 1,000 rows"
    ratios = [
        (f"{one}, 16 connections: against the best Python peer", "ours json 1 c16", best("json 1 c16"), "≥ 15"),
        (f"{many}, outputs only: against the best Python peer", "ours json 1000 outputs", best("json 1000"), ""),
        (f"{many}, full records: against the best Python peer", "ours json 1000 full", best("json 1000"), ""),
        (f"{arrow}, outputs only: against the bare session", "ours arrow 1000 outputs", "raw 1000", "≥ 0.3"),
        (f"{arrow}, full records: against the bare session", "ours arrow 1000 full", "raw 1000", ""),
        (f"{arrow}, outputs only, no log: against the bare session", "ours arrow 1000 outputs no log", "raw 1000", ""),
        (f"{arrow}, boosted trees: against the bare session", "ours boosted 1000", "raw boosted 1000", "≥ 0.8"),
        (f"{arrow}, forest: against the bare session", "ours forest 1000", "raw forest 1000", "≥ 0.92"),
        ("Arrow, one image, convolutions: against the bare session", "ours image", "raw image", "≥ 0.97"),
        (f"{one}: handed over by a gateway, against the engine's own port", "ours json 1 c64 handed over",
         "ours json 1 c64", "≥ 0.85"),
        (f"{one}: by the server's external URL, against its engine's own port", "server json 1 c64 external",
         "server json 1 c64 own port", "≥ 0.85"),
        (f"{one}, 64 connections: log on against off", "ours json 1 c64", "ours json 1 c64 no log", "≥ 0.88"),
        (f"{many}: log on against off", "ours json 1000 full", "ours json 1000 full no log", "≥ 0.88"),
        (f"{arrow}: log on against off", "ours arrow 1000 outputs", "ours arrow 1000 outputs no log", "≥ 0.88"),
    ]  # fmt: skip
    lines += ["", "## Ratios", "", "| what | ratio | by processor time | aim |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {what} | {rate(name) / rate(base):.2f} | {by_processor(name) / by_processor(base):.2f} | {aim} |"
        for what, name, base, aim in ratios
    ]
    lines += [
        "",
        "| what | measured | aim |",
        "| --- | --- | --- |",
        f"| {one}, 1 connection, the engine's own port: median latency | {found['ours json 1 c1'].p50_us:,.0f} µs "
        "| ≤ 120 µs |",
        f"| {one}, 1 connection, the server's external URL: median latency "
        f"| {found['server json 1 c1 external'].p50_us:,.0f} µs | ≤ 120 µs |",
        f"| cold start of an engine to its first inference | {bench.cold_start_s:.2f} s | ≤ 0.7 s |",
        f"| idle memory of an engine | {bench.idle_mib:.0f} MiB | ≤ 120 MiB |",
    ]
    lines += ["", "## All runs", "", _RUNS, "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {name} | {run.per_second:,.0f} | {run.per_cpu_second:,.0f} | {run.p50_us:,.0f} µs | {run.p99_us:,.0f} µs |"
        for name, run in found.items()
    ]
    return "\n".join(lines) + "\n"


def _row(title: str, found: dict[str, Result], *names: str | None) -> str:
    cells = [
        f"{found[name].per_second:,.0f} ({found[name].p50_us:,.0f} µs)" if name is not None and name in found else ""
        for name in names
    ]
    return f"| {title} | {' | '.join(cells)} |"


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main(arguments: list[str] | None = None) -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "potoroo-bench")
    parser.add_argument("--out", type=Path, default=Path("docs/performance.md"))
    parser.add_argument("--no-peers", action="store_true")
    options: Any = parser.parse_args(arguments)
    if not load.have_wrk():
        raise SystemExit("The bench needs wrk (apt-get install wrk).")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.work.resolve(), options.seconds, with_peers=not options.no_peers)
    try:
        bench.prepare_peers()
        found = bench.measure(options.rounds)
        page = report(bench, found, options.rounds)
    finally:
        bench.close()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
