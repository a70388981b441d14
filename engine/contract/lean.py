"""Keeps pandas out of a process that does not use it."""

from __future__ import annotations

import sys


def without_pandas() -> None:
    """Make `import pandas` fail from now on.

    pyarrow imports it, where it is installed, when it first makes an array: that would cost the first request a second.
    """
    sys.modules["pandas"] = None  # type: ignore[assignment]  # the import system's own way to say "not to be had"
