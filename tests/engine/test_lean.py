"""What processes do without: pandas in all of them, and in an engine all that few inferences need."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from engine.contract.lean import without_pandas

without_pandas()
import numpy
import pyarrow as pa

assert pa.array([True, None]).to_pylist() == [True, None]
assert pa.array(numpy.arange(3)).to_numpy().sum() == 3
assert pa.table({"a": [[1.0], [2.0]]}).to_pylist() == [{"a": [1.0]}, {"a": [2.0]}]
try:
    import pandas
except ImportError:
    pass
else:
    raise SystemExit("pandas was imported")
assert "pandas" not in sys.modules
"""


def test_arrays_are_made_without_pandas() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr


def test_an_engine_loads_late_what_few_inferences_need() -> None:
    late = (
        "pyarrow.compute",
        "pyarrow.fs",
        "pyarrow.parquet",
        "engine.runtime.expressions",
        "urllib.request",
        "pandas",
    )
    probe = f"""
import sys, engine.runtime.onnx, engine.server.process
print(*(name for name in {late!r} if name in sys.modules))
"""

    ran = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)

    assert ran.stdout.split() == []


def test_an_engine_keeps_arrow_buffers_in_the_heap_that_all_else_is_in() -> None:
    probe = """
from engine.server.main import main

main(["--document", "/nowhere"])
import pyarrow

print(pyarrow.default_memory_pool().backend_name)
"""

    ran = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)

    assert ran.stdout.split() == ["system"]
