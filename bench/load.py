"""wrk as the load: one core, one body, as fast as the server answers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_SCRIPT = """
local file = io.open(os.getenv("BENCH_BODY"), "rb")
wrk.body = file:read("*a")
file:close()
wrk.method = "POST"
for line in os.getenv("BENCH_HEADERS"):gmatch("[^\\n]+") do
  local name, value = line:match("([^:]+): (.*)")
  wrk.headers[name] = value
end
"""
_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


@dataclass(frozen=True)
class Result:
    """What wrk saw in one run."""

    per_second: float
    p50_us: float
    p99_us: float
    per_cpu_second: float = 0.0
    """Requests per second of processor time that the server's processes took: neighbours on the machine matter less."""


@dataclass(frozen=True)
class Request:
    """A request to repeat."""

    url: str
    body: Path
    headers: dict[str, str] = field(default_factory=dict)


def have_wrk() -> bool:
    """Say whether the load generator is installed."""
    return shutil.which("wrk") is not None


def processor_s(pids: Iterable[int]) -> float:
    """Return the processor time that processes and all they started have taken."""
    total, left = 0, list(pids)
    seen: set[int] = set()
    while left:
        one = left.pop()
        if one in seen:
            continue
        seen.add(one)
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            for task in Path(f"/proc/{one}/task").iterdir():
                left += [int(child) for child in (task / "children").read_text().split()]
        except FileNotFoundError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def run(request: Request, connections: int, seconds: float, core: int, pids: Iterable[int] = ()) -> Result:
    """Load a server that is made of these processes; raises `RuntimeError` if it answered anything but 200."""
    pids = tuple(pids)
    before = processor_s(pids)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT)
        script.flush()
        environment = os.environ | {
            "BENCH_BODY": str(request.body),
            "BENCH_HEADERS": "\n".join(f"{name}: {value}" for name, value in request.headers.items()),
        }
        done = subprocess.run(
            ["taskset", "-c", str(core), "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}", "--timeout", "30",
             "--latency", "-s", script.name, request.url],
            capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip
    took = processor_s(pids) - before
    text = done.stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(f"{request.url}: {text}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    answered = re.search(r"(\d+) requests in", text)
    assert rate is not None, text
    assert answered is not None, text
    by_processor = int(answered[1]) / took if took else 0.0
    return Result(float(rate[1]), _latency(text, "50%"), _latency(text, "99%"), by_processor)


def _latency(text: str, share: str) -> float:
    found = re.search(rf"{share}\s+([\d.]+)(us|ms|s)\b", text)
    assert found is not None, text
    return float(found[1]) * _UNITS[found[2]]
