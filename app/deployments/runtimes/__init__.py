"""Where engines run: processes of this machine, or a Kubernetes cluster."""

from __future__ import annotations

from app.deployments.runtimes.base import Runtime
from app.kit.context import Context

PART = "runtime"
"""Under this name `Context.parts` holds the process's `Runtime`, once it was asked for."""

PORT_PART = "port"
"""Under this name `Context.parts` holds the port that this process really listens on, when it does."""


def runtime_of(context: Context) -> Runtime:
    """Return the runtime that the settings choose."""
    runtime: Runtime | None = context.parts.get(PART)
    if runtime is None:
        runtime = context.parts[PART] = _open(context)
    return runtime


def internal_url(context: Context) -> str:
    """Return the URL at which engines reach the API."""
    settings = context.settings
    if settings.internal_url:
        return settings.internal_url.rstrip("/")
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "localhost") else settings.host  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{context.parts.get(PORT_PART, settings.port)}"


def _open(context: Context) -> Runtime:
    def access_url(deployment_id: int) -> str:
        return f"{internal_url(context)}/internal/access/{deployment_id}"

    settings = context.settings
    if settings.runtime == "kubernetes":
        from app.deployments.runtimes.kubernetes import KubernetesRuntime
        from app.deployments.runtimes.manifests import Cluster

        return KubernetesRuntime(
            Cluster(
                image=settings.engine_image,
                internal_url=internal_url(context),
                log_url=f"{internal_url(context)}/v1/logs",
                service_account=settings.engine_service_account,
                pull_secrets=tuple(filter(None, map(str.strip, settings.engine_pull_secrets.split(",")))),
            )
        )
    from app.deployments.runtimes.local import LocalRuntime

    return LocalRuntime(context.settings.run_dir, context.storage, access_url)
