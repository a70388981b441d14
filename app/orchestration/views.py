"""How orchestrations, tasks and runs look to a client: their statuses are closed lists that grew with the releases."""

from __future__ import annotations

from app.kit.clients import Client
from app.orchestration.schemas import OrchestrationOut, TaskOut, TaskRunBrief, TaskRunOut
from app.orchestration.tables import Orchestration, Task, TaskRun


def orchestration(row: Orchestration) -> OrchestrationOut:
    """Return an orchestration as clients see it."""
    return OrchestrationOut(
        id=row.id,
        name=row.name,
        created_at=row.created_at,
        updated_at=row.updated_at,
        workspace_id=row.workspace_id,
        sha=row.sha,
        file_name=row.file_name,
        file_size=row.file_size,
        task_id=row.task_id,
        owner_id=row.owner_id,
        created_by=row.created_by,
        status=row.status,
        image_path=row.image_path or "",
        error_summary=row.error_summary,
    )


def run(row: TaskRun, client: Client) -> TaskRunBrief:
    """Return a run as `client` can read it."""
    status = row.status
    if (status == "timed_out" and not client.knows_timed_out) or (status == "killed" and not client.knows_killed):
        status = "failure"
    return TaskRunBrief.model_validate(
        {"run_id": row.id, "status": status, "created_at": row.created_at, "updated_at": row.updated_at}
    )


def run_of_task(row: TaskRun, client: Client) -> TaskRunOut:
    """Return a run with its task's id."""
    return TaskRunOut(task=row.task_id, **run(row, client).model_dump())


def task(row: Task, runs: list[TaskRun], client: Client) -> TaskOut:
    """Return a task as `client` can read it."""
    status = row.status
    if status == "killed" and not client.knows_killed:
        status = "pending_kill"
    if status == "paused" and not client.knows_paused:
        status = "started"
    bundle = row.orchestration
    more = {
        "image": "potoroo/arbex-orch-deploy",
        "extra_env_vars": {
            "ORCH_ID": str(bundle.id),
            "ORCH_OWNER_ID": bundle.owner_id,
            "ORCH_SHA": bundle.sha,
            "TASK_DEBUG": "true" if row.debug else "false",
            "TASK_ID": str(row.id),
        },
        "reap_threshold_secs": row.timeout_s,
    }
    if row.schedule is not None:
        more["schedule"] = row.schedule
    else:
        more |= {"flavor": "exec_orch_oneshot", "exec_type": "job"}
    return TaskOut.model_validate(
        {
            "id": row.id,
            "name": row.name,
            "status": status,
            "run_type": row.run_type,
            "workspace_id": row.workspace_id,
            "input_data": row.input_data,
            "killed": row.killed,
            "created_at": row.created_at,
            "updated_at": row.updated_at,
            "last_runs": [run(one, client) for one in runs],
        }
        | more
    )
