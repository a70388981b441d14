"""`python -m engine.fetch`: brings a deployment's models to where an engine will start, and completes its document.

Runs before the engine in the same pod. The document it reads is the same for all replicas; the one it writes names this
replica and says where its models lie.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import msgspec

from engine.contract.deployment import ModelDocument, load_document

log = logging.getLogger(__name__)

ATTEMPTS = 5
TIMEOUT_S = 60.0
_CHUNK = 1024 * 1024


class FetchError(Exception):
    """A model could not be brought here."""


def fetch_model(model: ModelDocument, url: str, token: str, folder: Path) -> Path:
    """Return the file of a model, downloaded from below `url` unless it is there already; its hash is checked.

    Raises `FetchError`.
    """
    target = folder / model.sha
    if target.exists():
        return target
    request = urllib.request.Request(  # noqa: S310 - the URL comes from the deployment's own controller
        f"{url}/{model.model_version_id}", headers={"Authorization": f"Bearer {token}"}
    )
    draft = folder / f".{model.sha}.{os.getpid()}"
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as source, draft.open("wb") as sink:  # noqa: S310
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                sink.write(chunk)
        if digest.hexdigest() != model.sha:
            raise FetchError(f"model {model.name!r} arrived damaged: its SHA-256 is {digest.hexdigest()}")
        draft.replace(target)
    except (OSError, urllib.error.URLError) as exc:
        raise FetchError(f"model {model.name!r} cannot be fetched: {exc}") from exc
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
    return target


def prepare(source: Path, target: Path, folder: Path, *, url: str, token: str, replica: str) -> None:
    """Fetch the models of the document `source` into `folder` and write the replica's own document to `target`."""
    document = load_document(source.read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    models = []
    for model in document.models:
        models.append(msgspec.structs.replace(model, path=str(_patiently(model, url, token, folder))))
        log.info("fetch.model name=%s sha=%s", model.name, model.sha)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(msgspec.json.encode(msgspec.structs.replace(document, replica=replica, models=models)))


def _patiently(model: ModelDocument, url: str, token: str, folder: Path) -> Path:
    for attempt in range(1, ATTEMPTS):
        try:
            return fetch_model(model, url, token, folder)
        except FetchError as exc:
            log.warning("fetch.again attempt=%d error=%s", attempt, exc)
            time.sleep(min(2.0**attempt, 10.0))
    return fetch_model(model, url, token, folder)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="engine.fetch", description="Fetch the models of a deployment document.")
    parser.add_argument("--document", type=Path, required=True, help="document to read")
    parser.add_argument("--write", type=Path, required=True, help="document to write")
    parser.add_argument("--models", type=Path, required=True, help="folder for the models")
    parser.add_argument("--url", required=True, help="URL below which models are served by their version's number")
    parser.add_argument("--token-file", type=Path, required=True, help="file with the bearer token for it")
    parser.add_argument("--replica", required=True, help="name of this replica")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        token = options.token_file.read_text().strip()
        prepare(options.document, options.write, options.models, url=options.url, token=token, replica=options.replica)
    except (FetchError, OSError, msgspec.MsgspecError) as exc:
        log.error("fetch.failed error=%s", exc)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
