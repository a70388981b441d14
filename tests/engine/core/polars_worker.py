"""Evaluate expressions with polars 0.18.15, in a process of its own: one JSON request and answer per line."""

from __future__ import annotations

import base64
import io
import json
import math
import sys

import polars as pl


def plain(value: object) -> object:
    """Make JSON of NaN and infinities too."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def main() -> None:
    """Answer until the input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        frame = pl.read_ipc(io.BytesIO(base64.b64decode(request["table"])), memory_map=False)
        try:
            expression = eval(request["source"], {"pl": pl}).alias("result")
            answer = {"json": expression.meta.write_json()}
            values = frame.with_columns(expression)["result"]
            answer["values"] = [plain(value) for value in values.to_list()]
            answer["type"] = str(values.dtype)
        except BaseException as exc:  # polars panics with exceptions of their own kind
            answer = {"error": str(exc)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
