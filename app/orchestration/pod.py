"""`python -m app.orchestration.pod`: makes a pod ready for its task, then ends; the runner comes after it.

It fetches the bundle, checks and unpacks it, makes the environment, and puts the files where the SDK looks for them.
What it says is in the form of the task's own output; its last words tell why it failed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import shutil
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from app.errors import AppError
from app.kit.secrets import write_private
from app.orchestration import bundles, environments
from app.orchestration.runner import prefixed
from app.settings import Settings

ATTEMPTS = 5
TIMEOUT_S = 60.0
_CHUNK = 1024 * 1024


class CannotPrepare(Exception):
    """The pod cannot be made ready; the message says why."""


def say(text: str) -> None:
    """Write a line of the task's output."""
    sys.stdout.buffer.write(prefixed("stdout", "F", text.encode()))
    sys.stdout.buffer.flush()


def prepare(order: dict[str, Any], home: Path, state: Path, store: Path, *, pause_s: float = 1.0) -> None:
    """Make everything ready that the runner starts from; doing it again is harmless.

    Raises `CannotPrepare`.
    """
    say("WALLAROO: Setting up task run...")
    archive, code = state / "bundle.zip", home / "bundle"
    _fetch_patiently(order, archive, pause_s)
    shutil.rmtree(code, ignore_errors=True)
    code.mkdir(parents=True)
    settings = Settings(
        home=store,
        task_sdk=order["sdk"],
        package_index=SecretStr(order["package_index"]) if order["package_index"] else None,
        package_wheels=Path(order["package_wheels"]) if order["package_wheels"] else None,
        packaging_timeout_s=order["packaging_timeout_s"],
    )
    try:
        bundle = bundles.inspect(archive)
        bundles.unpack(archive, code)
        wanted = environments.requirements_of(settings, bundle.requirements)
        name = asyncio.run(environments.ensure(settings, wanted, say))
    except (AppError, environments.PackagingFailed) as exc:
        raise CannotPrepare(str(exc)) from exc
    archive.unlink()
    (home / "arguments.json").write_text(json.dumps(order["arguments"]))
    if order["token_file"] is not None:
        cache = home / ".cache" / "wallaroo_sdk" / "auth"
        cache.mkdir(parents=True, exist_ok=True)
        write_private(cache / "keycloak.json", json.dumps(order["token_file"]), replace=True)
    environment, entry = environments.folder_of(settings, name), code / bundle.entry_point
    runner = order["runner"]
    runner["env"] |= {
        "PATH": f"{environment / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "VIRTUAL_ENV": str(environment),
        "HOME": str(home),
    }
    runner |= {"argv": [str(environments.python_of(settings, name)), entry.name], "cwd": str(entry.parent)}
    write_private(state / "spec.json", json.dumps(runner), replace=True)


def _fetch_patiently(order: dict[str, Any], target: Path, pause_s: float) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch(order, target)
        except (OSError, urllib.error.URLError) as exc:
            gone = isinstance(exc, urllib.error.HTTPError) and exc.code < 500
            if attempt == ATTEMPTS or gone:
                raise CannotPrepare(f"the bundle cannot be fetched: {exc}") from exc
            say(f"WALLAROO: The bundle cannot be fetched yet: {exc}")
            time.sleep(pause_s * 2**attempt)
        else:
            return


def _fetch(order: dict[str, Any], target: Path) -> None:
    request = urllib.request.Request(  # noqa: S310 - the URL comes from the run's own worker
        order["bundle_url"], headers={"Authorization": f"Bearer {order['bundle_token']}"}
    )
    digest = hashlib.sha256()
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as source, target.open("wb") as sink:  # noqa: S310
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            sink.write(chunk)
    if digest.hexdigest() != order["sha"]:
        raise OSError(f"it arrived damaged: its SHA-256 is {digest.hexdigest()}")


def main(arguments: list[str] | None = None) -> int:
    """Prepare what the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m app.orchestration.pod")
    parser.add_argument("--order", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--environments", type=Path, required=True)
    parser.add_argument("--last-words", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        prepare(json.loads(given.order.read_text()), given.home, given.state, given.environments)
    except CannotPrepare as exc:
        say(f"WALLAROO: {exc}")
        given.last_words.write_text(str(exc))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
