"""Runs tasks as Jobs of a Kubernetes cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from app.orchestration.logs import joined, run_folder
from app.orchestration.runtimes import manifests, pods
from app.orchestration.runtimes.base import Outcome, RunSpec
from app.orchestration.runtimes.followed import Followed
from app.orchestration.runtimes.manifests import LABEL, PREPARE, TASK, Cluster
from app.settings import Settings

log = structlog.get_logger()

TIMEOUT_S = 15
_SILENCE_S = 60
_POLL_S = 1.0
_LAST_WORDS_S = 10.0
_BROKEN = (ApiException, urllib3.exceptions.HTTPError, OSError)


class KubernetesTasks:
    """Tasks as Jobs; the worker follows each to its end, and the cluster keeps it going meanwhile."""

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        token_for: Callable[[str], str],
        api: client.ApiClient | None = None,
        poll_s: float = _POLL_S,
    ) -> None:
        self._settings, self._cluster, self._token_for, self._poll_s = settings, cluster, token_for, poll_s
        if api is None:
            try:
                config.load_incluster_config()
            except config.ConfigException:
                config.load_kube_config()
            api = client.ApiClient()
        self._api = api
        self._core = client.CoreV1Api(api)
        self._batch = client.BatchV1Api(api)

    async def execute(self, spec: RunSpec, stop: asyncio.Event) -> Outcome:
        """Run to the end; when `stop` is set, end it early. Cancelled, it stops everything the run started."""
        folder = run_folder(self._settings, spec.run_id)
        await asyncio.to_thread(_fresh, folder)
        followed = _Following(self, spec.run_id, Followed(folder, self._settings.task_log_bytes))
        try:
            await self._create(spec)
            outcome = await self._watch(spec, stop, followed)
        except ApiException as exc:
            outcome = Outcome("failure", f"The cluster refused the task: {_message(exc)}")
        except asyncio.CancelledError:
            followed.abandon()
            with contextlib.suppress(*_BROKEN):  # `clean` tries again
                await asyncio.shield(self._delete(spec.run_id))
            raise
        await followed.finish()
        return Outcome(outcome.status, outcome.reason, await asyncio.to_thread(joined, folder))

    async def lines(self, run_id: str, newest: int | None) -> list[bytes]:
        """Return what a run that goes on has written, oldest first; before it begins, what its preparation says."""
        pod = await self._pod(run_id)
        if pod is None:
            return []
        container = TASK if pods.running(pod) else PREPARE
        tail = {} if newest is None else {"tail_lines": newest}
        try:
            name = pod["metadata"]["name"]
            answer = await self._ask(
                self._core.read_namespaced_pod_log,
                name,
                self._cluster.namespace,
                container=container,
                _preload_content=False,
                **tail,
            )
            text: bytes = await asyncio.to_thread(lambda: answer.data)
        except ApiException as exc:
            if exc.status in (400, 404):  # the container has not begun, or is gone
                return []
            raise
        return text.splitlines()

    async def clean(self, run_id: str) -> None:
        """Remove what is left of a run, its pod too; no error when there is nothing."""
        await self._delete(run_id)
        await asyncio.to_thread(shutil.rmtree, run_folder(self._settings, run_id), ignore_errors=True)

    # Parts.

    async def _create(self, spec: RunSpec) -> None:
        space = self._cluster.namespace
        with _passing(409):
            await self._ask(self._core.create_namespace, manifests.make_namespace(self._cluster))
        secret = manifests.make_secret(spec, self._cluster, self._token_for(spec.run_id))
        await self._ask(self._core.create_namespaced_secret, space, secret)
        await self._ask(self._batch.create_namespaced_job, space, manifests.make_job(spec, self._cluster))

    async def _watch(self, spec: RunSpec, stop: asyncio.Event, followed: _Following) -> Outcome:
        """Look at the run's pod until it is over."""
        patience_s = self._settings.packaging_timeout_s
        waited_s, asked, seen = 0.0, False, False
        while True:
            pod = await self._patiently(self._pod, spec.run_id)
            if pod is not None:
                seen = True
                followed.look(pod)
                if (outcome := pods.ending(pod)) is not None:
                    if outcome.reason.startswith("The task could not be prepared"):
                        followed.take(await self.lines(spec.run_id, None))
                    return outcome
                if not pods.running(pod) and waited_s > patience_s:
                    return Outcome("failure", f"The task's pod did not start in {patience_s} s: {pods.holdup(pod)}")
            elif asked:
                return Outcome("killed", "The task was killed on request.")
            elif (failed := await self._patiently(self._job_failure, spec.run_id)) is not None:
                return Outcome("failure", failed)
            elif not seen and waited_s > patience_s:
                return Outcome("failure", f"The cluster made no pod for the task in {patience_s} s.")
            if stop.is_set() and not asked:
                asked = True
                await self._delete(spec.run_id)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await (asyncio.Event().wait() if asked else stop.wait())
            waited_s += self._poll_s

    async def _patiently(self, look: Callable[[str], Any], run_id: str) -> Any:
        """Look, and look again when the cluster does not answer: a run must not fail because its API restarts."""
        while True:
            try:
                return await look(run_id)
            except _BROKEN as exc:
                if isinstance(exc, ApiException) and (exc.status or 0) in (401, 403):
                    raise
                log.warning("task_run.cluster_silent", run=run_id, error=repr(exc))
                await asyncio.sleep(5 * self._poll_s)

    async def _pod(self, run_id: str) -> dict[str, Any] | None:
        found = await self._ask(
            self._core.list_namespaced_pod, self._cluster.namespace, label_selector=f"{LABEL}/run={run_id}"
        )
        shown: list[dict[str, Any]] = [self._api.sanitize_for_serialization(pod) for pod in found.items]
        return shown[0] if shown else None

    async def _job_failure(self, run_id: str) -> str | None:
        """Return why a Job has no pod and will not get one; None when one may yet come."""
        try:
            job = await self._ask(self._batch.read_namespaced_job, manifests.run_name(run_id), self._cluster.namespace)
        except ApiException as exc:
            if exc.status == 404:
                return "The task's Job was deleted."
            raise
        for condition in (job.status and job.status.conditions) or []:
            if condition.type == "Failed" and condition.status == "True":
                return f"The cluster gave the task up: {condition.message or condition.reason}"
        return None

    async def _delete(self, run_id: str) -> None:
        name, space = manifests.run_name(run_id), self._cluster.namespace
        with _passing(404):
            await self._ask(self._batch.delete_namespaced_job, name, space, propagation_policy="Background")
        with _passing(404):
            await self._ask(self._core.delete_namespaced_secret, name, space)

    async def _ask(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return await asyncio.to_thread(call, *arguments, _request_timeout=TIMEOUT_S, **options)

    def output(self, pod: str) -> Any:
        """Return the stream of a task's output, from its beginning to its end."""
        return self._core.read_namespaced_pod_log(
            pod,
            self._cluster.namespace,
            container=TASK,
            follow=True,
            _preload_content=False,
            _request_timeout=(TIMEOUT_S, _SILENCE_S),
        )


class _Following:
    """A thread that reads a run's output, started again when the connection broke."""

    def __init__(self, runtime: KubernetesTasks, run_id: str, kept: Followed) -> None:
        self._runtime, self._run_id, self._kept = runtime, run_id, kept
        self._thread: threading.Thread | None = None
        self._pod: str | None = None
        self._is_whole = self._is_abandoned = False

    def look(self, pod: dict[str, Any]) -> None:
        """Begin to read once the task runs."""
        if not pods.running(pod) or (self._thread is not None and self._thread.is_alive()):
            return
        self._pod, is_over = str(pod["metadata"]["name"]), pods.ending(pod) is not None
        if self._is_whole:
            return
        self._thread = threading.Thread(
            target=self._read, args=(self._pod, is_over), name=f"log-{self._run_id}", daemon=True
        )
        self._thread.start()

    def _read(self, pod: str, is_over: bool) -> None:
        self._kept.again()
        try:
            answer = self._runtime.output(pod)
            for chunk in answer.stream(256 * 1024):
                self._kept.feed(chunk)
        except _BROKEN as exc:
            log.debug("task_run.output_broke", run=self._run_id, error=repr(exc))
            return
        finally:
            if self._is_abandoned:
                self._kept.close()
        self._is_whole = is_over  # else the connection may have ended before the output did

    def take(self, lines: list[bytes]) -> None:
        """Keep what another container said."""
        self._kept.feed(b"".join(line + b"\n" for line in lines))

    def abandon(self) -> None:
        """Let go of the output, now or when the thread is through with it."""
        self._is_abandoned = True
        if self._thread is None or not self._thread.is_alive():
            self._kept.close()

    async def finish(self) -> None:
        """Wait for the last words, but not for ever."""
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, _LAST_WORDS_S)
            if self._thread.is_alive():
                return
            if self._pod is not None and not self._is_whole:
                await asyncio.to_thread(self._read, self._pod, True)
        self._kept.close()


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)


@contextlib.contextmanager
def _passing(status: int) -> Any:
    """Take an answer of this status for success: it is there already, or gone already."""
    try:
        yield
    except ApiException as exc:
        if exc.status != status:
            raise


def _message(exc: ApiException) -> str:
    """Return the cluster's own words; its answer is JSON unless something stood in between."""
    try:
        return str(json.loads(exc.body or "{}")["message"])
    except (ValueError, KeyError, TypeError):
        return str(exc.reason)
