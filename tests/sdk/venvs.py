"""Virtual environments with releases of the vendor's SDK, made on demand and kept outside the checkout.

One per release: their pins exclude each other. Where a release's own pins have no wheels for our Python, the nearest
versions that have are taken.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

RELEASES = ("2023.2.1", "2023.4.2", "2024.4.4", "2025.2.5", "2026.1.3")
"""Those that CI runs."""

ALL_RELEASES = (
    *("2023.2.1", "2023.4.0", "2023.4.1", "2023.4.2", "2024.1.0", "2024.2.2", "2024.3.3", "2024.4.4"),
    *("2025.1.6", "2025.2.5", "2026.1.0", "2026.1.3"),
)

_COMMON = (
    *("appdirs==1.4.4", "attrs>=21.3.0", "pyjwt==2.4.0", "python-dateutil==2.8.2", "tenacity==8.0.1"),
    *("requests-toolbelt>=0.9.1,<1", "urllib3<2", "graphql-core<3.3", "jedi<0.19", "setuptools<80", "orjson", "scipy"),
)
_PINS: dict[str, tuple[str, ...]] = {
    "2023": (
        *("gql==3.4.0", "httpx>=0.15.4,<0.24", "ipython==7.24.1", "numpy==1.23.5", "pandas==1.5.3"),
        *("matplotlib==3.6.3", "seaborn==0.11.2", "pyyaml==6.0.1", "requests==2.28.2"),
    ),
    "2024": (
        *("gql==3.4.0", "httpx>=0.20,<0.27", "ipython==7.24.1", "numpy==1.26.0", "pandas==2.2.0"),
        *("matplotlib==3.7.3", "seaborn==0.13.2", "pyarrow==14.0.0", "polars==0.18.15", "pydantic==2.7.0"),
        *("pyyaml==6.0.1", "requests==2.25.1", "chardet<5", "idna<3", "rich==13.7.1"),
    ),
    "2025": (
        *("gql==3.5.0", "httpx>=0.20,<0.28", "httpx-retries==0.4.0", "ipython==7.31.1", "openai==1.78.1", "requests"),
        *("numpy==1.26.0", "pandas==2.2.0", "seaborn==0.13.2", "pyarrow==14.0.1", "polars==0.18.15"),
        *("pydantic==2.11.7", "pyyaml==6.0.1", "rich==13.7.1"),
    ),
}


def pins(release: str) -> tuple[str, ...]:
    """Return the requirements of a release besides the SDK itself."""
    year = release.partition(".")[0]
    own = _PINS["2025" if year >= "2025" else year]
    if release.startswith("2023.4"):
        own = (*own, "pyarrow==12.0.1", "polars==0.18.15")
    elif year == "2023":
        own = (*own, "pyarrow==10.0.1")
    elif year >= "2025":
        own = (*own, "matplotlib==3.7.3" if year == "2025" else "matplotlib==3.9.4")
    return (*_COMMON, *own)


def cache() -> Path:
    """Return the folder that the environments are kept in."""
    return Path(os.environ.get("POTOROO_TEST_CACHE", "~/.cache/potoroo-test")).expanduser()


class CannotMake(Exception):
    """The environment cannot be made here; the message says why."""


def python_of(release: str) -> Path:
    """Return the interpreter of the release's environment, which is made if it is not there.

    Raises `CannotMake`.
    """
    wanted = pins(release)
    mark = hashlib.sha256("\n".join((sys.version, *wanted)).encode()).hexdigest()[:10]
    folder = cache() / "sdk" / f"{release}-py{sys.version_info.major}.{sys.version_info.minor}-{mark}"
    python = folder / "bin" / "python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _run(sys.executable, "-m", "venv", str(folder))
            install = (str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--prefer-binary")
            _run(*install, *wanted)
            _run(*install, "--no-deps", f"wallaroo=={release}")
            _run(str(python), "-W", "ignore", "-c", "import wallaroo, wallaroo.pipeline, wallaroo.assay_config")
            (folder / "complete").touch()
    return python


def _run(*command: str) -> None:
    environment = os.environ | {"MPLBACKEND": "Agg"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    except subprocess.TimeoutExpired as exc:
        raise CannotMake(f"{command[:6]} took longer than 900 s") from exc
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise CannotMake(f"{' '.join(command[1:4])} failed: {' '.join(last)[:300]}")
