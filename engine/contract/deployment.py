"""The documents an engine starts from and reports with.

A controller writes a `DeploymentDocument` (one JSON file per replica) and starts an engine on it. The engine needs
nothing else: no database, no settings of the control plane. What callers it answers comes from the `AccessDocument`,
which the engine reads again every few seconds, so that it goes on working while the control plane is away.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

CheckColumns = Literal["auto", "both", "check_failures", "anomaly"]


class ModelConfigDocument(msgspec.Struct, frozen=True, kw_only=True):
    """How a model version is to be run: the row of `model_config` in force at the deploy."""

    id: int
    runtime: str
    tensor_fields: list[str] | None = None
    filter_threshold: float | None = None
    input_schema: str | None = None
    """Base64 of an Arrow IPC schema message, or None when the model says all there is to know."""
    output_schema: str | None = None
    batch_config: str | None = None
    dynamic_batching_config: dict[str, Any] | None = None


class ModelDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One model version that an engine loads."""

    model_version_id: int
    name: str
    version: str
    sha: str
    """SHA-256 of the artifact, 64 hex characters."""
    framework: str
    path: str
    """Where the artifact lies for the engine: an absolute path."""
    arch: str = "x86"
    accel: Any = "none"
    config: ModelConfigDocument
    record: dict[str, Any] = {}
    """The version as the REST API shows it (`{"model_version": …, "config": …}`); `_model_split` prints it."""


class PipelineDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One pipeline version that an engine serves under `/pipelines/{id}`."""

    id: str
    version: str
    definition: dict[str, Any]
    """Exactly as the caller stored it."""
    topic: str
    """Log topic of answered inferences; failures go to `<topic>-failures`."""


class EngineResources(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine may use of its machine."""

    threads: int = 1
    """Intra-op threads of one session."""
    workers: int = 1
    """Processes that share the port."""
    memory_bytes: int | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds an engine keeps so that one caller cannot take it down."""

    body_bytes: int = 256 * 1024 * 1024
    queue_depth: int = 1024
    """Requests waiting or running in one worker before the next is refused with 503."""
    deadline_s: float = 60.0
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    keep_alive_s: float = 75.0
    drain_s: float = 20.0


class LogDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Where answered inferences are kept."""

    root: str
    """Folder of the log store (a path), or the URL of a log-store API to spool to."""
    enabled: bool = True
    fsync_interval_s: float = 1.0
    """0 syncs every group of records."""
    when_full: Literal["refuse", "drop"] = "refuse"
    """What happens to an inference whose record cannot be kept: 503, or answered and counted as dropped."""
    record_bytes_limit: int = 1024 * 1024
    """A row whose record is larger loses columns, the largest input first (`metadata.dropped`)."""
    spool: str | None = None
    """Folder for records on their way to a remote log store."""
    spool_bytes_limit: int = 1 << 30
    """Bytes that may wait in the spool, for each topic and worker; beyond them `when_full` decides."""
    token_file: str | None = None


class AccessSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine learns whom it may answer."""

    url: str
    """`GET` gives the `AccessDocument` of this deployment."""
    token_file: str
    """File with the bearer token for `url`, mode 0600; never on a command line."""
    refresh_s: float = 2.0


class DeploymentDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one engine replica needs to know."""

    deployment_id: int
    deploy_id: str
    revision: int
    workspace_id: int
    replica: str
    """Name of this replica, also its log partition: `engine-<hash>-<suffix>` like a pod's."""
    pipelines: list[PipelineDocument]
    models: list[ModelDocument]
    resources: EngineResources = EngineResources()
    limits: Limits = Limits()
    log: LogDocument | None = None
    access: AccessSettings | None = None
    """None: the port is open to whoever reaches it (a gateway in front checks)."""
    check_columns: CheckColumns = "both"
    """Which generation of check results replies and logs carry (`check_failures`, `anomaly`); `auto`: by the steps."""
    split_record: Literal["short", "full"] = "full"
    """Form of `_model_split`: name, version and sha, or the whole version record."""
    host: str = "127.0.0.1"
    port: int = 0
    """0: any free port; the engine writes the real one into its status file."""
    handoff_socket: str | None = None
    """Unix socket on which a gateway on this machine passes accepted connections, and gets them back."""
    status_file: str | None = None
    """Where the engine writes its `EngineStatus` whenever that changes."""


class AccessDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Who may infer on a deployment, as of now."""

    issuers: list[str]
    """Accepted `iss` claims; empty accepts any issuer whose key is in `keys`."""
    keys: list[dict[str, str]]
    """JWKS keys (RS256) that sign tokens."""
    users: list[str] = []
    """Ids (`sub`) of the users who may infer: members of the workspace and administrators."""
    any_service: bool = True
    """Whether tokens of confidential clients (client_credentials, `clientId` claim) may infer."""
    revoked_sessions: list[str] = []
    """`sid` claims that were logged out or revoked and whose tokens have not expired yet."""
    not_before: dict[str, int] = {}
    """Per user id: tokens issued (`iat`) before this epoch second no longer count."""


class PipelineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A pipeline as the engine sees it."""

    id: str
    version: str
    status: str
    reason: str | None = None


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A model version as the engine sees it."""

    model_version_id: int
    name: str
    version: str
    sha: str
    status: str
    reason: str | None = None


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine says of itself: in its status file, and on `GET /status` of its port."""

    replica: str
    revision: int
    phase: Literal["Starting", "Running", "Draining", "Error"]
    reason: str | None = None
    pid: int
    host: str
    port: int
    started_at: float
    pipelines: list[PipelineStatus] = []
    models: list[ModelStatus] = []


def load_document(raw: bytes) -> DeploymentDocument:
    """Return the document in `raw` JSON; raises `msgspec.ValidationError` naming the field that is wrong."""
    return msgspec.json.decode(raw, type=DeploymentDocument)
