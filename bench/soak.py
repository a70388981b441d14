"""Load a whole server for a while and look for what grows: `python -m bench.soak [--seconds 600] [--idle 5000]`.

Full load by the external URL and on the engine's own port, with thousands of idle connections held all the while and
clients that trickle heads and bodies or never read their replies. It fails, and says why, when a request of an ordinary
client is not answered with 200 or waits for long, when an idle connection is lost, when memory or descriptors of the
server or of the engine go on growing, or when something is left open at the end. Needs `wrk`, and about 15 MiB of disk
for each second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import re
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import load, models
from tests.inference.instance import Deployed, Instance

ARROW = "application/vnd.apache.arrow.file"
RECORDS = "application/json; format=pandas-records"
QUERY = "?dataset%5B%5D=%2A&dataset.exclude%5B%5D=metadata&dataset.separator=."
SLICE_S = 10
TOUCH_S = 45.0
"""An idle connection asks something this often: within the time that the server keeps a silent one."""
SLOW_CLIENTS = 150
BATCHES_PER_SECOND = 5
PATIENCE_S = 5.0
"""Longer than this no ordinary request may take, with both cores busy."""
WARM_UP = 0.3
"""The share of the time after which memory must have settled."""
GROWTH_MIB = 12.0
GROWTH_SHARE = 0.08


@dataclass
class Sample:
    """A process at one moment."""

    at_s: float
    rss_mib: float
    files: int
    """Open descriptors that are no sockets."""
    sockets: int


@dataclass
class Seen:
    """What ordinary clients and the others saw."""

    answered: int = 0
    batches: int = 0
    probes_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slow_cut: int = 0
    idle_lost: int = 0
    idle_touched: int = 0


def sample(pid: int, began: float) -> Sample:
    """Look at a process."""
    anonymous = sum(
        int(line.split()[1])
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith(("RssAnon:", "RssShmem:"))
    )
    sockets = files = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(entry).startswith("socket:"):
                sockets += 1
            else:
                files += 1
    return Sample(time.monotonic() - began, anonymous / 1024, files, sockets)


class Client:
    """Requests on connections of their own, by hand: a client library would cost more than the server."""

    def __init__(self, port: int, path: str, token: list[str]) -> None:
        self.port = port
        self.path = path
        self.token = token

    def request(self, body: bytes, kind: str = RECORDS) -> bytes:
        """Return a whole request."""
        head = (
            f"POST {self.path}{QUERY} HTTP/1.1\r\nHost: soak\r\nAuthorization: Bearer {self.token[0]}\r\n"
            f"Content-Type: {kind}\r\nAccept: {kind if kind == ARROW else '*/*'}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect."""
        return await asyncio.open_connection("127.0.0.1", self.port)

    @staticmethod
    async def status(reader: asyncio.StreamReader) -> int:
        """Read one reply to its end."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        await reader.readexactly(int(length[1]) if length else 0)
        return int(head.split(b" ", 2)[1])


class Crowd:
    """Every client but wrk, in one event loop."""

    def __init__(self, clients: list[Client], bodies: dict[str, bytes], idle: int, seen: Seen) -> None:
        self.clients = clients
        self.bodies = bodies
        self.idle = idle
        self.seen = seen
        self.opened = 0
        self._ending = False

    async def run(self, until: float) -> None:
        """Be a nuisance until then, and leave."""
        tasks = [asyncio.create_task(self._hold(number)) for number in range(self.idle)]
        tasks += [asyncio.create_task(self._trickle(number)) for number in range(SLOW_CLIENTS)]
        tasks += [asyncio.create_task(self._probe(client)) for client in self.clients]
        tasks += [asyncio.create_task(self._send_batches(client)) for client in self.clients]
        await asyncio.sleep(max(until - time.monotonic(), 0))
        self._ending = True
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                self.seen.wrong.append(f"a client broke: {result!r}")

    async def _hold(self, number: int) -> None:
        """Keep a connection that asks something now and then."""
        client = self.clients[number % len(self.clients)]
        await asyncio.sleep(number / self.idle * 8)
        reader, writer = await client.open()
        self.opened += 1
        try:
            while True:
                writer.write(client.request(self.bodies["one"]))
                if await client.status(reader) != 200:
                    self.seen.wrong.append("an idle connection was refused")
                self.seen.idle_touched += 1
                await asyncio.sleep(TOUCH_S)
        except (OSError, EOFError) as exc:
            self.seen.idle_lost += 1
            self.seen.wrong.append(f"an idle connection was lost: {exc!r}")
        finally:
            writer.close()

    async def _trickle(self, number: int) -> None:
        """Send a head or a body a byte at a time, or read nothing; start again when cut off."""
        client = self.clients[number % len(self.clients)]
        whole = client.request(self.bodies["one"])
        head = whole.index(b"\r\n\r\n") + 4
        while True:
            writer = None
            try:
                reader, writer = await client.open()
                if number % 3 == 2:
                    writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport can
                    while True:
                        writer.write(client.request(self.bodies["many"]))
                        await writer.drain()
                at = 0
                if number % 3:
                    writer.write(whole[:head])
                    at = head
                for byte in whole[at:-1]:
                    if reader.at_eof():
                        break
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(1.0)
            except OSError:
                pass
            finally:
                if writer is not None:
                    writer.transport.abort()
            self.seen.slow_cut += 1
            await asyncio.sleep(0.2)

    async def _probe(self, client: Client) -> None:
        """Be an ordinary client: a new connection, one request."""
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(30):
                    reader, writer = await client.open()
                    writer.write(client.request(self.bodies["one"]))
                    status = await client.status(reader)
                    writer.close()
            except (OSError, EOFError) as exc:  # TimeoutError is an OSError
                self.seen.wrong.append(f"a new client got {exc!r}")
            else:
                self.seen.probes_s.append(time.monotonic() - began)
                if status != 200:
                    self.seen.wrong.append(f"a new client got {status}")
            await asyncio.sleep(0.1)

    async def _send_batches(self, client: Client) -> None:
        """Send batches of a thousand rows, in JSON and in Arrow, and some that are refused."""
        reader, writer = await client.open()
        turn = 0
        while True:
            turn += 1
            name, kind, wanted = [("many", RECORDS, 200), ("arrow", ARROW, 200), ("bad", RECORDS, 400)][turn % 3]
            writer.write(client.request(self.bodies[name], kind))
            status = await client.status(reader)
            self.seen.batches += 1
            if status != wanted:
                self.seen.wrong.append(f"a batch ({name}) was answered {status}")
            await asyncio.sleep(1 / BATCHES_PER_SECOND)


class Soak:
    """A server, its clients and what is seen of both."""

    def __init__(self, home: Path, idle: int) -> None:
        self.seen = Seen()
        self.idle = idle
        self.instance = Instance(home / "home")
        self.folder = home
        self.samples: dict[str, list[Sample]] = {"server": [], "engine": []}
        self.token = [""]

    def start(self) -> None:
        """Start the server and a pipeline."""
        self.instance.start()
        self.instance.sign_in()
        self.token[0] = self.instance.token
        path = models.dense(self.folder / "dense.onnx")
        model = self.instance.configure(self.instance.upload("dense", path.read_bytes()), tensor_fields=["tensor"])
        self.deployed: Deployed = self.instance.deploy("soak", model)
        (status,) = self.instance.home.glob("run/engines/*/*/status.json")
        shown = json.loads(status.read_bytes())
        assert self.instance.process is not None
        self.pids = {"server": self.instance.process.pid, "engine": shown["pid"]}
        external = self.deployed.url.removeprefix(self.instance.base)
        self.clients = [
            Client(self.instance.port, external, self.token),
            Client(shown["port"], "/pipelines/soak", self.token),
        ]
        rows = models.rows(1000)
        self.bodies = {
            "one": models.records_body(rows[:1]),
            "many": models.records_body(rows),
            "arrow": models.arrow_body(rows),
            "bad": models.records_body(rows)[:-30] + b"}]",
        }

    def look(self, began: float) -> None:
        """Take a sample of each process."""
        for name, pid in self.pids.items():
            self.samples[name].append(sample(pid, began))

    def load(self, seconds: int, number: int) -> None:
        """Load the server to the full with wrk for a slice."""
        client = self.clients[number % len(self.clients)]
        body = self.folder / "one"
        body.write_bytes(self.bodies["one"])
        headers = {"Content-Type": RECORDS, "Authorization": f"Bearer {self.token[0]}"}
        request = load.Request(f"http://127.0.0.1:{client.port}{client.path}{QUERY}", body, headers)
        try:
            ran = load.run(request, 32, seconds, 1)
        except RuntimeError as exc:
            self.seen.wrong.append(f"under load: {exc}")
        else:
            self.seen.answered += int(ran.per_second * seconds)
            latest = {name: samples[-1] for name, samples in self.samples.items()}
            shown = "  ".join(
                f"{name} {one.rss_mib:.0f} MiB {one.files}+{one.sockets} fds" for name, one in latest.items()
            )
            print(f"{latest['server'].at_s:6.0f} s  {ran.per_second:9,.0f}/s  {shown}", flush=True)

    def run(self, seconds: float) -> None:
        """Load for so long."""
        began = time.monotonic()
        self.look(began)
        crowd = Crowd(self.clients, self.bodies, self.idle, self.seen)
        thread = _InThread(crowd.run(began + seconds))
        number, signed_in = 0, time.monotonic()
        while (left := began + seconds - time.monotonic()) > 1:
            if time.monotonic() - signed_in > 30:
                self._renew()
                signed_in = time.monotonic()
            self.load(min(SLICE_S, int(left)), number)
            self.look(began)
            number += 1
        thread.join()
        self.held = crowd.opened
        time.sleep(8)  # whoever holds a connection for an engine notices within seconds that it is gone
        self.look(began)

    def _renew(self) -> None:
        workspace = self.instance.workspace
        self.instance.sign_in()
        self.instance.workspace = workspace
        self.token[0] = self.instance.token

    def verdict(self) -> list[str]:
        """Return what is wrong, if anything."""
        seen = self.seen
        found = [f"{count} times: {text}" for text, count in _counted(seen.wrong)]
        if self.held < self.idle:
            found.append(f"only {self.held} of {self.idle} idle connections could be opened")
        if seen.probes_s and max(seen.probes_s) > PATIENCE_S:
            found.append(f"a new client waited {max(seen.probes_s):.1f} s")
        for name, samples in self.samples.items():
            loaded = samples[1:-1]
            settled = loaded[int(len(loaded) * WARM_UP) :]
            grown = _grown(settled)
            if grown > max(GROWTH_MIB, GROWTH_SHARE * settled[0].rss_mib):
                found.append(f"the {name}'s memory grew by {grown:.1f} MiB after it should have settled")
            first, last = samples[0], samples[-1]
            if last.sockets > first.sockets + 8:
                found.append(f"the {name} has {last.sockets} sockets open at the end, {first.sockets} before")
            if max(one.files for one in settled) > settled[0].files + 8:
                found.append(f"the {name}'s open files went from {settled[0].files} to {settled[-1].files}")
        return found

    def summary(self) -> str:
        """Return the figures."""
        seen, probes = self.seen, sorted(self.seen.probes_s)
        lines = [
            f"answered under full load {seen.answered:,}, batches {seen.batches:,}, idle connections {self.held:,} "
            f"(asked {seen.idle_touched:,} times, lost {seen.idle_lost}), slow clients cut off {seen.slow_cut:,} times",
            f"new clients: {len(probes):,}, median {statistics.median(probes) * 1e3:.1f} ms, "
            f"99 % below {probes[int(len(probes) * 0.99)] * 1e3:.0f} ms, longest {probes[-1] * 1e3:.0f} ms",
        ]
        for name, samples in self.samples.items():
            loaded = samples[1:-1]
            settled = loaded[int(len(loaded) * WARM_UP) :]
            lines.append(
                f"{name}: {samples[0].rss_mib:.0f} MiB before, {settled[0].rss_mib:.0f} settled, "
                f"{settled[-1].rss_mib:.0f} at the end of the load ({_grown(settled):+.1f} MiB by the slope), "
                f"{samples[-1].rss_mib:.0f} after, sockets "
                f"{samples[0].sockets} before, {max(one.sockets for one in samples)} at most, {samples[-1].sockets} "
                f"after, files {samples[0].files} before, {samples[-1].files} after"
            )
        return "\n".join(lines)


def _grown(samples: list[Sample]) -> float:
    """Return by how much memory grew over the samples, by the median slope between any two of them."""
    slopes = [
        (later.rss_mib - earlier.rss_mib) / (later.at_s - earlier.at_s)
        for index, earlier in enumerate(samples)
        for later in samples[index + 1 :]
        if later.at_s > earlier.at_s
    ]
    return statistics.median(slopes) * (samples[-1].at_s - samples[0].at_s) if slopes else 0.0


def _counted(texts: list[str]) -> list[tuple[str, int]]:
    return [(text, texts.count(text)) for text in dict.fromkeys(texts)]


class _InThread:
    """A coroutine in a process's other thread."""

    def __init__(self, coroutine: Any) -> None:
        import threading

        self._error: BaseException | None = None

        def run() -> None:
            try:
                asyncio.run(coroutine)
            except BaseException as exc:
                self._error = exc

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--idle", type=int, default=5000, help="idle connections to hold")
    parser.add_argument(
        "--work", type=Path, help="an empty folder for the server's home; made and removed if not given"
    )
    parser.add_argument("--out", type=Path, help="where to write a section for docs/performance.md")
    options: Any = parser.parse_args(arguments)
    if not load.have_wrk():
        raise SystemExit("The soak needs wrk (apt-get install wrk).")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < options.idle + 1000:
        raise SystemExit(f"The soak needs {options.idle + 1000} descriptors; the limit is {hard} (ulimit -n).")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.ExitStack() as stack:
        home = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="potoroo-")))
        home.mkdir(parents=True, exist_ok=True)
        soak = Soak(home.resolve(), options.idle)
        stack.callback(soak.instance.stop_everything)
        soak.start()
        soak.run(options.seconds)
        lines = soak.summary().splitlines()
        wrong = soak.verdict()
    lines += [f"WRONG: {line}" for line in wrong] or ["nothing grew, nobody was harmed"]
    print(*lines, sep="\n")
    if options.out is not None:
        title = f"## Soak\n\nWritten by `python -m bench.soak`: {options.seconds:g} s of full load on a whole server, "
        title += f"{datetime.datetime.now(datetime.UTC).date()}."
        options.out.write_text("\n".join([title, "", *(f"- {line}" for line in lines)]) + "\n")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
