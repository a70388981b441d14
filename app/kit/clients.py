"""Which client is calling, as far as it says so: the one place that knows the SDK's releases."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SDK = re.compile(r"WallarooSDK/(\d{4})\.(\d+)(?:\.(\d+))?")
_OLD_HTTPX = re.compile(r"python-httpx/0\.(?:1\d|2[0-6])\.", re.ASCII)


@dataclass(frozen=True, slots=True)
class Client:
    """A client's release, when its User-Agent tells."""

    release: tuple[int, int, int] | None = None
    """Release of the vendor's SDK; None for those up to 2023.4 (but at the log store), and for everybody else."""
    is_old_generated: bool = False
    """Whether it may be the generated client of the SDK up to 2023.4, which shows nothing but an httpx of its time."""

    def is_from(self, year: int, minor: int = 0) -> bool:
        """Tell whether this is the SDK of release `year.minor` or newer."""
        return self.release is not None and self.release >= (year, minor, 0)

    @property
    def is_sdk(self) -> bool:
        """Whether it is the vendor's SDK, or may be: it hides the message of a status it was not told about."""
        return self.release is not None or self.is_old_generated

    @property
    def shows_pipeline_versions(self) -> bool:
        """Whether pipelines and models in a deployment's status carry the fields that came with 2024.1."""
        return self.is_from(2024, 1)

    @property
    def knows_timed_out(self) -> bool:
        """Whether `timed_out` is among the statuses of a task run: from 2023.4, which cannot be told from 2023.2."""
        return self.is_from(2024, 1)

    @property
    def knows_paused(self) -> bool:
        """Whether `paused` is among the statuses of a task."""
        return self.is_from(2024, 1)

    @property
    def knows_killed(self) -> bool:
        """Whether `killed` is among the statuses of tasks and runs."""
        return self.is_from(2024, 2)

    @property
    def takes_last_version_as_newest(self) -> bool:
        """Whether it takes the last of a model's versions for the newest; from 2025.1 on it is the first."""
        return self.is_old_generated or (self.release is not None and self.release < (2025, 1, 0))

    @property
    def reads_logs_as_texts(self) -> bool:
        """Whether plain JSON asked of the log store is a text per row: up to 2024.2, with its Arrow switched off."""
        return self.release is not None and self.release < (2024, 3, 0)

    @property
    def wants_plain_deploy_errors(self) -> bool:
        """Whether a failed deploy must be a 500: up to 2023.4 the message of any other status is lost."""
        return self.is_old_generated


def client_of(user_agent: str | None) -> Client:
    """Return the client that calls itself `user_agent`."""
    found = _SDK.search(user_agent or "")
    if found is None:
        return Client(is_old_generated=_OLD_HTTPX.match(user_agent or "") is not None)
    year, minor, patch = found.groups()
    return Client(release=(int(year), int(minor), int(patch or 0)))
