"""`pyarrow.compute` for processes that seldom need it: it takes nine MiB, and is imported when it is first used."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Return a function of `pyarrow.compute`, and keep it for the next time."""
    import pyarrow.compute

    found = globals()[name] = getattr(pyarrow.compute, name)
    return found
