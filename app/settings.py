"""Every knob of the control plane. Read once at start and passed in; modules never read the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings, from `POTOROO_*` environment variables."""

    model_config = SettingsConfigDict(env_prefix="POTOROO_", extra="ignore")

    home: Path = Field(
        default=Path("~/.potoroo"),
        description="Folder of all that this instance keeps: database, models, logs, keys.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for all interfaces.")
    port: int = Field(default=8080, description="Port of the API, the docs and the inference URLs.", ge=0, le=65535)
    public_url: str | None = Field(
        default=None,
        description="URL that clients use when a proxy stands in front; token issuer and device links follow it.",
    )
    instance_name: str = Field(default="Potoroo", description="Shown by features/list and on the login page.")
    database_url: SecretStr | None = Field(
        default=None, description="postgresql:// URL of your own Postgres; without it an embedded one runs in the home."
    )
    database_pool: int = Field(default=10, description="Database connections one process keeps open.", ge=1)
    storage_url: str | None = Field(
        default=None, description="Where models and bundles lie: a folder or s3://bucket/prefix; default <home>/blobs."
    )
    log_url: str | None = Field(default=None, description="Folder of the inference log store; default <home>/logs.")
    log_sync_s: float = Field(
        default=1.0,
        description="Seconds after which an inference's record also survives a power cut; 0: before it is answered.",
        ge=0,
    )
    log_when_full: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="An inference whose record cannot be kept is refused with 503, or answered and counted as dropped.",
    )
    log_record_bytes: int = Field(
        default=1024**2,
        description="Largest record of one row; columns of a larger one are left out, inputs first, largest first.",
        gt=0,
    )
    log_spool_bytes: int = Field(
        default=1024**3,
        description="Records that an engine on another machine keeps while the log store is away, for each pipeline.",
        gt=0,
    )
    log_keep_days: float = Field(
        default=0, description="Age at which inference logs are deleted, days; 0 keeps them.", ge=0
    )
    log_keep_bytes: int = Field(
        default=0,
        description="Bytes of inference logs that one pipeline may keep, oldest deleted first; 0: no limit.",
        ge=0,
    )
    log_cold_after_hours: float = Field(
        default=24, description="Age at which inference logs are rewritten as Parquet, hours.", ge=0
    )
    log_archive_url: str | None = Field(
        default=None, description="Where old Parquet log files move to, as s3://bucket/prefix; unset: they stay."
    )
    log_archive_after_days: float = Field(default=7, description="Age at which they move, days.", ge=0)
    log_append_limit_bytes: int = Field(
        default=256 * 1024**2, description="Largest Arrow file that one append to the log may bring.", gt=0
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level to log.")
    log_format: Literal["console", "json"] = Field(default="console", description="Form of log lines on stderr.")
    upload_limit_bytes: int = Field(default=20 * 1024**3, description="Largest model or bundle that is accepted.", gt=0)
    upload_wait_s: float = Field(
        default=5.0,
        description="Longest that the answer to an upload waits for the model to be ready; some clients ask only once.",
        ge=0,
    )
    inspection_s: float = Field(default=120.0, description="Longest that looking into an upload may take.", gt=0)
    inspection_memory_bytes: int = Field(
        default=8 * 1024**3, description="Address space that looking into an upload may use.", gt=0
    )
    body_limit_bytes: int = Field(default=64 * 1024**2, description="Largest JSON body that is accepted.", gt=0)
    shutdown_s: float = Field(default=20.0, description="Seconds that running requests get to finish at a stop.", ge=0)
    admin_email: str = Field(
        default="admin@potoroo.local", description="E-mail and username of the administrator made at first start."
    )
    secret_key: SecretStr | None = Field(
        default=None,
        description="Key (or comma-separated keys, newest first) that encrypts secrets at rest; made if unset.",
    )
    access_token_s: int = Field(
        default=3600, description="Life of access tokens of confidential clients, seconds.", ge=60, le=86400
    )
    sdk_token_s: int = Field(
        default=300, description="Life of access tokens of the public sdk-client, seconds.", ge=60, le=86400
    )
    refresh_token_s: int = Field(
        default=1800, description="How long a refresh token serves after its last use, seconds.", ge=60
    )
    session_s: int = Field(
        default=36000, description="Longest life of one sign-in, seconds; offline tokens are not bound by it.", ge=60
    )
    key_rotation_days: int = Field(
        default=90, description="Age at which the key that signs tokens is replaced; 0 never replaces it.", ge=0
    )
    invitations: Literal["everyone", "admins"] = Field(
        default="everyone", description="Who may invite users: every signed-in user, or administrators alone."
    )
    trusted_proxies: str = Field(
        default="127.0.0.1,::1",
        description="Addresses or networks (comma-separated, * for all) whose X-Forwarded-For, -Host and -Proto count.",
    )
    smtp_url: SecretStr | None = Field(
        default=None,
        description="Mail server for invitations: smtp://user:password@host:587 (STARTTLS) or smtps://…; without it "
        "no mail is sent.",
    )
    smtp_from: str | None = Field(
        default=None, description="Sender of invitations; default the administrator's e-mail."
    )
    oidc_issuer: str | None = Field(
        default=None,
        description="Realm URL of an external Keycloak, which then takes the place of the built-in identity provider.",
    )
    oidc_audience: str | None = Field(
        default=None, description="Audience that tokens of the external Keycloak must name; unset: not looked at."
    )
    oidc_admin_client_id: str | None = Field(
        default=None, description="Client of the external Keycloak whose service account may view and manage users."
    )
    oidc_admin_client_secret: SecretStr | None = Field(default=None, description="Secret of that client.")
    default_arch: Literal["x86", "arm", "power10"] = Field(
        default="x86", description="Architecture that clients assume for models and engines."
    )
    task_sdk: str = Field(
        default="2026.1.3",
        description="Release of the vendor's SDK that tasks find installed; empty installs none.",
        pattern=r"^[0-9A-Za-z.]*$",
    )
    task_slots: int = Field(default=4, description="Task runs that one worker carries at the same time.", ge=1)
    task_memory_bytes: int = Field(default=2 * 1024**3, description="Memory one task run may use.", gt=0)
    task_processes: int = Field(default=256, description="Processes and threads one task run may have.", gt=0)
    task_timeout_s: int = Field(
        default=900, description="Time limit of a task run that was given none; continuous tasks have none.", gt=0
    )
    task_log_bytes: int = Field(
        default=64 * 1024**2,
        description="Output kept of one task run: its beginning, and the newest of the rest.",
        ge=64 * 1024,
    )
    task_log_days: int = Field(default=30, description="Days the output of finished task runs is kept.", ge=1)
    task_url: str | None = Field(
        default=None, description="URL at which tasks reach this server; default the loopback address and the port."
    )
    task_runtime: Literal["local", "kubernetes"] | None = Field(
        default=None, description="Where tasks run; default where engines run (`POTOROO_RUNTIME`)."
    )
    task_image: str | None = Field(
        default=None, description="Image of task pods, which holds this server's code; default the engines' image."
    )
    task_namespace: str = Field(default="potoroo-tasks", description="Kubernetes namespace of task pods.")
    task_environments_claim: str | None = Field(
        default=None,
        description="Volume claim in that namespace where task pods keep environments; unset: each run makes its own.",
    )
    package_index: SecretStr | None = Field(
        default=None, description="Package index for the environments of tasks; unset: the machine's own configuration."
    )
    package_wheels: Path | None = Field(
        default=None, description="Folder of wheels to install from instead of an index, for machines without network."
    )
    packaging_timeout_s: int = Field(default=1800, description="Longest time to make one environment.", gt=0)
    runtime: Literal["local", "kubernetes"] = Field(
        default="local", description="Where engines run: as processes of this machine, or in a Kubernetes cluster."
    )
    engine_start_s: float = Field(
        default=300.0, description="Seconds a deployment gets to begin to answer before it counts as failed.", gt=0
    )
    engine_image: str = Field(
        default="potoroo:latest", description="Image of engines in a Kubernetes cluster (the same as the server's)."
    )
    engine_service_account: str = Field(default="default", description="Service account of engine pods.")
    engine_pull_secrets: str = Field(
        default="", description="Names of image pull secrets of engine pods, comma-separated."
    )
    internal_url: str | None = Field(
        default=None,
        description="URL at which engines reach this server; default the loopback address and the port.",
    )
    check_columns: Literal["auto", "both", "check_failures", "anomaly"] = Field(
        default="both",
        description="Generation of check results in replies and logs: check_failures (clients up to 2023.4.1), "
        "anomaly, both, or auto by the steps of the pipeline.",
    )

    @property
    def local_url(self) -> str:
        """Return the URL at which processes of this machine reach the API."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104
        return f"http://{host}:{self.port}"

    @field_validator("home", mode="after")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def blobs_url(self) -> str:
        """Return where blobs lie."""
        return self.storage_url or str(self.home / "blobs")

    @property
    def logs_root(self) -> str:
        """Return where the inference log lies."""
        return self.log_url or str(self.home / "logs")

    @property
    def run_dir(self) -> Path:
        """Return the folder of process state: sockets, engine documents, pid files."""
        return self.home / "run"
