"""Lets the code of a task find its files under /home/jovyan, where the SDK looks for them.

Many tasks run on one host, so each has a home of its own: opening a path below /home/jovyan opens the same path below
that home. Python imports this module at the start of every interpreter in a task.
"""

from __future__ import annotations

import builtins
import io
import os
from typing import Any

_PREFIX = "/home/jovyan"
_home = os.environ.get("HOME", "")
_open = io.open


def _own(path: Any) -> Any:
    name = path if isinstance(path, (int, bytes)) else os.fspath(path)
    if isinstance(name, str) and (name == _PREFIX or name.startswith(_PREFIX + "/")):
        return _home + name[len(_PREFIX) :]
    return path


def _redirected(file: Any, *args: Any, **options: Any) -> Any:
    return _open(_own(file), *args, **options)


if _home and _home != _PREFIX:
    _redirected.__doc__ = _open.__doc__
    builtins.open = io.open = _redirected
