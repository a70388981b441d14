"""Where tasks run: as processes of this machine, or as Jobs of a Kubernetes cluster."""

from __future__ import annotations

from app.deployments.runtimes import internal_url
from app.kit.context import Context
from app.orchestration.runtimes.base import TaskRuntime

PART = "task_runtime"
"""Under this name `Context.parts` holds the process's `TaskRuntime`, once it was asked for."""


def runtime_of(context: Context) -> TaskRuntime:
    """Return the runtime for tasks that the settings choose."""
    runtime: TaskRuntime | None = context.parts.get(PART)
    if runtime is None:
        runtime = context.parts[PART] = _open(context)
    return runtime


def task_url(context: Context) -> str:
    """Return the URL at which tasks reach the API."""
    return (context.settings.task_url or internal_url(context)).rstrip("/")


def _open(context: Context) -> TaskRuntime:
    settings = context.settings
    if (settings.task_runtime or settings.runtime) == "kubernetes":
        from app.orchestration.bundle_access import token_for
        from app.orchestration.runtimes.kubernetes import KubernetesTasks
        from app.orchestration.runtimes.manifests import Cluster

        return KubernetesTasks(
            settings,
            Cluster(
                image=settings.task_image or settings.engine_image,
                namespace=settings.task_namespace,
                internal_url=internal_url(context),
                task_url=task_url(context),
                sdk=settings.task_sdk,
                package_index=settings.package_index.get_secret_value() if settings.package_index else None,
                package_wheels=str(settings.package_wheels) if settings.package_wheels else None,
                packaging_timeout_s=settings.packaging_timeout_s,
                memory_bytes=settings.task_memory_bytes,
                processes=settings.task_processes,
                environments_claim=settings.task_environments_claim,
                pull_secrets=tuple(filter(None, map(str.strip, settings.engine_pull_secrets.split(",")))),
            ),
            lambda run_id: token_for(context, run_id),
        )
    from app.orchestration.runtimes.local import LocalTasks

    return LocalTasks(settings, task_url(context))
