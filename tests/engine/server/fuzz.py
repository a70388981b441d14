"""Fuzz a running engine: `python -m tests.engine.server.fuzz --seconds 30 [--target http|json|arrow] [--seed N]`.

A pass means: every reply is HTTP, none is a 500, no request hangs, good requests are answered rightly in between, and
the process lives. The seed of a failing run is printed with the bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.server.supervisor import read_status
from tests.engine.server import models

TARGETS = ("http", "json", "arrow")
GOOD_BODY = b'[{"tensor":[1.5,2,3]}]'
ARROW = b"application/vnd.apache.arrow.file"
QUIET_S = 5.0

HTTP_PIECES = [
    b"GET ",
    b"POST ",
    b"OPTIONS * ",
    b"HEAD ",
    b"/pipelines/m",
    b"/infer",
    b"/metrics",
    b"/logs",
    b"?dataset[]=%zz",
    b"/%00%ff",
    b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n",
    b" HTTP/9.9\r\n",
    b"Host: x\r\n",
    b"Content-Length: 22\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: -1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"Expect: 100-continue\r\n",
    b"Content-Type: application/json\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b"16\r\n" + GOOD_BODY + b"\r\n0\r\n\r\n",
    b"0\r\n\r\n",
    b"fffffffff\r\n",
    GOOD_BODY,
    b"A: " + b"b" * 2000 + b"\r\n",
    b" folded\r\n",
    b"Upgrade: websocket\r\nConnection: upgrade\r\n",
    b"Authorization: Bearer x\r\n",
    b"Accept: " + ARROW + b"\r\n",
]
JSON_PIECES = [
    b"[",
    b"]",
    b"{",
    b"}",
    b'"tensor"',
    b'"other"',
    b":",
    b",",
    b"1",
    b"-0",
    b"1e400",
    b"1e-400",
    b"null",
    b"true",
    b"NaN",
    b'"',
    b"\\u0000",
    b"\\",
    b"12345678901234567890123",
    b"0.1",
    b" ",
    b"\n",
    b'{"tensor":[1,2,3]}',
    b'[{"tensor":[',
    b"]}]",
    b"\xff",
    b"[[[[[[[[",
    b"{}",
]


def arrow_files() -> list[bytes]:
    """Return files of many types and layouts to start from."""
    rows: list[dict[str, Any]] = [{"tensor": [1.0, 2.0, 3.0]}] * 4
    kinds = [
        pa.list_(pa.float32()),
        pa.list_(pa.float64()),
        pa.list_(pa.float32(), 3),
        pa.large_list(pa.float32()),
        pa.list_(pa.int64()),
        pa.list_(pa.string()),
    ]
    found = []
    for kind in kinds:
        cells = [{"tensor": ["a"]}] if pa.types.is_string(kind.value_type) else rows
        if pa.types.is_integer(kind.value_type):
            cells = [{"tensor": [1, 2, 3]}]
        batch = pa.RecordBatch.from_pylist(cells, schema=pa.schema([("tensor", kind)]))
        for compression in (None, "zstd", "lz4"):
            sink = io.BytesIO()
            options = pa.ipc.IpcWriteOptions(compression=compression)
            with pa.ipc.new_file(sink, batch.schema, options=options) as writer:
                writer.write_batch(batch)
                writer.write_batch(batch)
            found.append(sink.getvalue())
    sink = io.BytesIO()
    batch = pa.RecordBatch.from_pylist(rows, schema=pa.schema([("tensor", kinds[0])]))
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return [*found, *[sink.getvalue()] * 6]


def mutate(raw: bytes, dice: random.Random, pieces: list[bytes]) -> bytes:
    """Change some bytes."""
    data = bytearray(raw)
    for _ in range(dice.randint(1, 6)):
        at = dice.randint(0, len(data))
        kind = dice.randrange(5)
        if kind == 0 and data:
            data[at % len(data)] = dice.randrange(256)
        elif kind == 1:
            del data[at : at + dice.randint(1, 16)]
        elif kind == 2:
            data[at:at] = dice.choice(pieces)
        elif kind == 3 and len(data) > 8:
            at %= len(data) - 8
            data[at : at + 4] = dice.choice(
                [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f"]
            )
        else:
            other = dice.randint(0, len(data))
            data[at:at] = data[min(at, other) : max(at, other)][:64]
    return bytes(data)


class Fuzz:
    """Sends one input after another and looks at the replies."""

    def __init__(self, port: int, seed: int) -> None:
        self.port = port
        self.dice = random.Random(seed)
        self.sent = 0
        self.statuses: dict[int, int] = {}
        self._files = arrow_files()

    def http(self) -> bytes:
        count = self.dice.randint(1, 20)
        if self.dice.random() < 0.5:
            good = (
                b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 22\r\n\r\n"
                + GOOD_BODY
            )
            return mutate(good * self.dice.randint(1, 3), self.dice, HTTP_PIECES)
        return b"".join(self.dice.choice(HTTP_PIECES) for _ in range(count))

    def json(self) -> bytes:
        if self.dice.random() < 0.5:
            body = b"".join(self.dice.choice(JSON_PIECES) for _ in range(self.dice.randint(1, 15)))
        else:
            rows = self.dice.choice(
                [GOOD_BODY, b'[{"tensor":[1,2,3]},{"tensor":[4,5,6]}]', b'{"tensor":[[1,2,3]]}', b"[[1,2,3]]"]
            )
            body = mutate(rows, self.dice, JSON_PIECES)
        kind = self.dice.choice(
            [
                b"application/json",
                b"application/json; format=pandas-records",
                b"application/json; format=wallaroo",
                b"",
                b"x/y",
            ]
        )
        return post(body, kind, self.dice.choice([b"*/*", ARROW]))

    def arrow(self) -> bytes:
        body = mutate(self.dice.choice(self._files), self.dice, [b"ARROW1", b"\x00" * 8, b"\xff" * 8])
        return post(body, ARROW, self.dice.choice([b"*/*", ARROW]))

    def round(self, target: str) -> None:
        """Send one input, and look."""
        raw = getattr(self, target)()
        try:
            received = self.exchange(raw)
        except TimeoutError:
            raise SystemExit(f"HANG on {raw!r}") from None
        for line in received.split(b"\r\n"):
            if line.startswith(b"HTTP/1.1 "):
                status = int(line.split()[1])
                self.statuses[status] = self.statuses.get(status, 0) + 1
                if status == 500:
                    raise SystemExit(f"500 on {raw!r}: {received!r}")
        if received and not received.startswith(b"HTTP/1.1 "):
            raise SystemExit(f"no HTTP on {raw!r}: {received[:200]!r}")
        self.sent += 1
        if self.sent % 50 == 0:
            self.check_alive()

    def check_alive(self) -> None:
        """Good requests are answered as ever."""
        received = self.exchange(post(GOOD_BODY, b"application/json", b"*/*"))
        rows = json.loads(received.partition(b"\r\n\r\n")[2])
        if rows[0]["in"] != {"tensor": [1.5, 2, 3]}:
            raise SystemExit(f"a good request was answered {received!r}")

    def exchange(self, raw: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), QUIET_S) as sock:
            received = b""
            try:
                cut = self.dice.randint(0, len(raw))
                sock.sendall(raw[:cut])
                sock.sendall(raw[cut:])
                sock.shutdown(socket.SHUT_WR)
                while data := sock.recv(1 << 16):
                    received += data
            except ConnectionError:
                pass
            return received


def post(body: bytes, kind: bytes, accept: bytes) -> bytes:
    """Return a whole request."""
    head = b"POST /infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: %b\r\nAccept: %b\r\n" % (
        kind,
        accept,
    )
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def run(seconds: float, targets: list[str], seed: int) -> dict[int, int]:
    """Start an engine and fuzz it; returns how often each status was seen."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        document = models.document(folder, {"m": models.linear(folder / "m.onnx")}, limits={"body_bytes": 1 << 20})
        (folder / "document.json").write_text(json.dumps(document))
        process = subprocess.Popen([sys.executable, "-m", "engine.server", "--document", str(folder / "document.json")])
        try:
            deadline = time.monotonic() + 30
            while (status := read_status(folder / "status.json")) is None or status.phase != "Running":
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit("the engine does not start")
                time.sleep(0.05)
            fuzz = Fuzz(status.port, seed)
            fuzz.check_alive()
            for target in targets:
                end = time.monotonic() + seconds / len(targets)
                before = fuzz.sent
                while time.monotonic() < end:
                    fuzz.round(target)
                fuzz.check_alive()
                if process.poll() is not None:
                    raise SystemExit(f"the engine died ({process.returncode}), target {target}, seed {seed}")
                print(f"{target}: {fuzz.sent - before} inputs", flush=True)
            process.send_signal(signal.SIGTERM)
            if process.wait(30) != 0:
                raise SystemExit(f"the engine ended with {process.returncode}")
            return fuzz.statuses
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=90.0, help="time for all targets together")
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    print(run(options.seconds, options.target or list(TARGETS), options.seed))


if __name__ == "__main__":
    main()
