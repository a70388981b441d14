"""`python -m engine.server --document FILE`: serve a deployment document."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import logging
import os
import signal
import sys
from pathlib import Path

import msgspec
import uvloop

from engine.contract.lean import with_one_heap, without_pandas

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM; returns the exit status (2: the document makes no engine, the status file says why)."""
    parser = argparse.ArgumentParser(prog="engine.server", description="Serve the pipelines of a deployment document.")
    parser.add_argument("--document", type=Path, required=True, help="deployment document (JSON)")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    without_pandas()
    with_one_heap()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each batch that leaves a spool says nothing
    from engine.contract.deployment import load_document

    try:
        document = load_document(options.document.read_bytes())
    except (OSError, msgspec.MsgspecError) as exc:
        logging.getLogger(__name__).error("engine.no_document path=%s error=%s", options.document, exc)
        return 2
    if options.worker is not None:
        _die_with(options.parent)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if options.worker is None and document.resources.workers > 1:
            from engine.server.supervisor import Supervisor

            return runner.run(Supervisor(options.document, document).run())
        from engine.server.process import EngineProcess, Place

        place = Place(options.worker or 0, document.resources.workers, options.port)

        async def serve() -> int:
            return await EngineProcess(options.document, place).run()

        return runner.run(serve())


def _die_with(parent: int) -> None:
    """Stop, in order, when the supervisor is gone, however it went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
