"""Keeps pandas out of a process that does not use it."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec


class _NoPandas(MetaPathFinder):
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
