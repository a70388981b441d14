"""Keeps the output of a container that is read over a connection which may break: without gaps, and bounded."""

from __future__ import annotations

from pathlib import Path

from app.orchestration.runner import Log


class Followed:
    """Lines that begin with their time; after `again` what was kept before is passed over."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._log = Log(folder, limit_bytes)
        self._rest = b""
        self._newest, self._alike = b"", 0
        self._skip = 0

    def again(self) -> None:
        """Begin anew: the same output comes once more, from its beginning or from somewhere in it."""
        self._rest, self._skip = b"", self._alike

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        fresh = [line for line in lines if self._is_new(line)]
        if fresh:
            self._log.write(b"\n".join(fresh) + b"\n")

    def _is_new(self, line: bytes) -> bool:
        stamp = line.split(b" ", 1)[0]
        if stamp < self._newest:
            return False
        if stamp == self._newest:
            if self._skip:
                self._skip -= 1
                return False
            self._alike += 1
            return True
        self._newest, self._alike, self._skip = stamp, 1, 0
        return True

    def close(self) -> None:
        """Keep what came last, too, though its line was not ended."""
        if self._rest and self._is_new(self._rest):
            self._log.write(self._rest + b"\n")
        self._rest = b""
        self._log.close()
