"""Keeps what it does not need out of a process."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec


class _NoPandas:
    """Says that there is no pandas.

    A None in `sys.modules` would say so too, but not to pyarrow: what imports it there takes the None for the module.
    """

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is kept out of this process", name=name)
        return None


def without_pandas() -> None:
    """Make `import pandas` fail from now on.

    pyarrow imports it, where it is installed, when it first makes an array: that would cost the first request a second.
    """
    sys.meta_path.insert(0, _NoPandas())


def with_one_heap() -> None:
    """Let Arrow take its memory from the heap, unless the environment says otherwise; to be called before its import.

    A pool of its own would keep what it once took: four MiB at the start, thirty after requests of a thousand rows.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
