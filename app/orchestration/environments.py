"""Python environments for tasks: made once for each set of requirements, shared by all that need the same."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from app.settings import Settings

_SDK_PIN = re.compile(r"^\s*wallaroo\s*==\s*(\d{4}\.\d+)", re.MULTILINE | re.IGNORECASE)
_NAME = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_WITH_BUILDS = (
    *("matplotlib==3.6.3", "numpy==1.23.5", "orjson>=3.8.5", "pandas==1.5.3", "pyyaml==6.0.1", "requests==2.28.2"),
    *("scipy>=1.10,<1.12", "urllib3<2"),
)
_OVERRIDES: dict[str, tuple[str, ...]] = {
    "2023.2": (*_WITH_BUILDS, "pyarrow==10.0.1"),
    "2023.3": (*_WITH_BUILDS, "pyarrow==10.0.1"),
    "2023.4": (*_WITH_BUILDS, "pyarrow==12.0.1"),
}
"""Nearest versions with builds for this Python, by releases of the SDK whose own pins have none."""
_NAMES_SDK = re.compile(r"^\s*wallaroo\s*([=<>!~\[;@ ]|$)", re.MULTILINE | re.IGNORECASE)
_PASSED_ON = (
    *("PATH", "HOME", "LANG", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("REQUESTS_CA_BUNDLE", "PIP_CONFIG_FILE", "PIP_CERT", "PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX"),
)


class PackagingFailed(Exception):
    """The environment cannot be made; the text is the installer's own reason."""


def requirements_of(settings: Settings, own: str) -> str:
    """Return what to install: the bundle's own requirements, and the SDK where they do not name it."""
    lines = own.strip()
    if settings.task_sdk and not _NAMES_SDK.search(lines):
        lines = f"{lines}\nwallaroo=={settings.task_sdk}"
    return lines.strip() + "\n"


def overrides_of(requirements: str) -> tuple[str, ...]:
    """Return what to install in place of the SDK's own pins, where those have no builds for this Python.

    What the bundle itself asks for stands: an override counts for the SDK's pins, not for the bundle's.
    """
    pin = _SDK_PIN.search(requirements)
    loose = _OVERRIDES.get(pin[1], ()) if pin else ()
    own = {_name(line): line.strip() for line in requirements.splitlines() if _name(line)}
    return tuple(own.get(_name(line), line) for line in loose)


def _name(requirement: str) -> str:
    found = _NAME.match(requirement)
    return re.sub(r"[-_.]+", "-", found[1]).lower() if found else ""


def name_of(requirements: str) -> str:
    """Return the hash that names the environment of `requirements` on this Python."""
    lines = sorted(line.strip() for line in requirements.splitlines() if line.strip())
    said = json.dumps([sys.version_info[:3], lines, *filter(None, [overrides_of(requirements)])])
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def folder_of(settings: Settings, name: str) -> Path:
    """Return where the environment `name` lies."""
    return settings.home / "environments" / name


def python_of(settings: Settings, name: str) -> Path:
    """Return the environment's interpreter."""
    return folder_of(settings, name) / "bin" / "python"


def is_ready(settings: Settings, name: str) -> bool:
    """Tell whether the environment `name` is there, whole."""
    return (folder_of(settings, name) / ".ready").exists()


async def ensure(settings: Settings, requirements: str, say: Callable[[str], None]) -> str:
    """Make the environment for `requirements` unless it is there; returns its name.

    `say` gets the installer's lines. Raises `PackagingFailed`.
    """
    name = name_of(requirements)
    folder = folder_of(settings, name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    async with _alone(folder.with_suffix(".lock")):
        if is_ready(settings, name):
            say(f"The environment {name} is there already.")
            return name
        if folder.exists():  # half made by somebody who was stopped
            await asyncio.to_thread(shutil.rmtree, folder)
        try:
            await _make(settings, folder, requirements, say)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise
        (folder / ".ready").touch()
    return name


@contextlib.asynccontextmanager
async def _alone(path: Path) -> AsyncIterator[None]:
    with path.open("w") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        yield


async def _make(settings: Settings, folder: Path, requirements: str, say: Callable[[str], None]) -> None:
    uv = [sys.executable, "-m", "uv"] if importlib.util.find_spec("uv") else None
    python = str(folder / "bin" / "python")
    if uv:
        await _run([*uv, "venv", "--python", sys.executable, str(folder)], settings, say)
        install = [*uv, "pip", "install", "--python", python]
    else:
        await _run([sys.executable, "-m", "venv", str(folder)], settings, say)
        install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    if not requirements.strip():
        return
    listed = folder / "requirements.txt"
    listed.write_text(requirements)
    if uv and (overrides := overrides_of(requirements)):
        replaced = folder / "overrides.txt"
        replaced.write_text("\n".join(overrides) + "\n")
        install += ["--override", str(replaced)]
        say(f"Nearest builds for this Python stand in for pins of the SDK: {', '.join(overrides)}")
    if settings.package_wheels is not None:
        install += ["--no-index", "--find-links", str(settings.package_wheels)]
    await _run([*install, "-r", str(listed)], settings, say)


async def _run(command: list[str], settings: Settings, say: Callable[[str], None]) -> None:
    environment = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
    environment |= {"UV_CACHE_DIR": str(settings.home / "cache" / "uv"), "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}
    if settings.package_index is not None:  # by the environment: an index's URL may hold a password
        index = settings.package_index.get_secret_value()
        environment |= {"PIP_INDEX_URL": index, "UV_DEFAULT_INDEX": index}
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    lines: list[str] = []
    try:
        async with asyncio.timeout(settings.packaging_timeout_s):
            assert process.stdout is not None  # noqa: S101
            async for raw in process.stdout:
                lines.append(raw.decode("utf-8", "replace").rstrip())
                say(lines[-1])
            code = await process.wait()
    except TimeoutError as exc:
        raise PackagingFailed(f"Installing took longer than {settings.packaging_timeout_s} s.") from exc
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            await process.wait()
    if code:
        raise PackagingFailed(_reason(lines) or f"The installer ended with exit status {code}.")


def _reason(lines: list[str]) -> str:
    """Return what the installer said was wrong: its last error with what follows, in one line."""
    said = [line.strip(" ×╰│─▶") for line in lines if line.strip()]
    start = next((i for i in range(len(said) - 1, -1, -1) if re.match(r"(?i)error|.*no solution found", said[i])), None)
    return " ".join(said[start if start is not None else -3 :])[-1500:]
