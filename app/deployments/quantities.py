"""Amounts of memory and processor, as Kubernetes and the guide write them."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

from app.errors import Invalid

_QUANTITY = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:([eE][+-]?\d{1,2})|(m|k|K|M|G|T|P|E)?(i)?(B|b)?)\s*", re.ASCII)
_POWERS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


def parse_memory(value: Any, name: str = "memory") -> int:
    """Return the bytes that a quantity such as `"1Gi"`, `"512MiB"`, `"1.5G"` or a number says.

    Raises `Invalid` for anything else.
    """
    amount, unit = _parse(value, name)
    if unit == "m":
        size = amount / 1000
    else:
        base = 1024 if unit.endswith("i") else 1000
        size = amount * base ** _POWERS[unit.removesuffix("i")]
    if not 0 < size < 2**60:
        raise Invalid(f'{name}: {value!r} is no possible amount of memory; write it like "1Gi" or "512MiB".')
    return int(size)


def parse_cpus(value: Any, name: str = "cpus") -> float:
    """Return the processors that a number, `"0.5"` or `"500m"` says; raises `Invalid` for anything else."""
    amount, unit = _parse(value, name)
    if unit not in ("", "m"):
        raise Invalid(f'{name}: {value!r} is no number of processors; write it like 1, 0.25 or "250m".')
    cpus = float(amount / 1000 if unit == "m" else amount)
    if not 0 < cpus <= 4096:
        raise Invalid(f"{name}: {value!r} is no possible number of processors.")
    return cpus


def memory_quantity(size_bytes: int) -> str:
    """Return `size_bytes` as Kubernetes writes it: the largest binary unit that divides it."""
    for power, unit in ((4, "Ti"), (3, "Gi"), (2, "Mi"), (1, "Ki")):
        if size_bytes % 1024**power == 0:
            return f"{size_bytes // 1024**power}{unit}"
    return str(size_bytes)


def _parse(value: Any, name: str) -> tuple[Decimal, str]:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Invalid(f"{name}: {value!r} is no amount.")
    found = _QUANTITY.fullmatch(str(value)) if len(str(value)) <= 32 else None
    if found is None:
        raise Invalid(f'{name}: {str(value)[:40]!r} is no amount; write it like "1Gi", "512MiB" or 0.5.')
    number, exponent, prefix, binary, _ = found.groups()
    if binary and prefix in (None, "m"):
        raise Invalid(f'{name}: {value!r} is no amount; write it like "1Gi" or "512MiB".')
    try:
        return Decimal(number + (exponent or "")), (prefix or "") + ("i" if binary else "")
    except InvalidOperation as exc:  # pragma: no cover - the pattern lets only numbers through
        raise Invalid(f"{name}: {value!r} is no amount.") from exc
