"""The `potoroo` command."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import importlib.metadata
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from app.errors import CommandFailed
from app.identity import cli as identity
from app.logs.cli import logs
from app.settings import Settings
from engine.contract.lean import without_pandas

if TYPE_CHECKING:
    from app.kit.postgres import EmbeddedPostgres

cli = typer.Typer(
    name="potoroo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console(stderr=True, highlight=False)
identity.mount(cli)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(importlib.metadata.version("potoroo"))  # noqa: T201
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Potoroo, a self-hosted MLOps control plane."""


@contextmanager
def sole_owner(home: Path) -> Iterator[None]:
    """Hold the home's lock; raises `CommandFailed` when another server runs on it."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / "serve.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            lock.seek(0)
            pid = lock.read().strip() or "unknown"
            raise CommandFailed(
                f"Another server (process {pid}) already runs on {home}. Stop it first, or give this one a home "
                "of its own with POTOROO_HOME."
            ) from exc
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def database(settings: Settings) -> Iterator[tuple[str, EmbeddedPostgres | None]]:
    """Yield the URL of the database, migrated to this release, and its server if that is the embedded one."""
    from app.kit import migrate
    from app.kit.postgres import EmbeddedPostgres

    embedded = EmbeddedPostgres(settings.home / "postgres") if settings.database_url is None else None
    url = embedded.start() if embedded else settings.database_url.get_secret_value()  # type: ignore[union-attr]
    try:
        migrate.upgrade(url)
        yield url, embedded
    finally:
        if embedded:
            embedded.stop()


def run_roles(settings: Settings, roles: Sequence[str]) -> None:
    """Run `roles` in this process until it is told to stop."""
    import uvloop

    from app.kit import logging

    logging.configure(settings)
    without_pandas()
    # uvicorn raises the signal anew once it has stopped; that must not end the process before Postgres is stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with sole_owner(settings.home) if len(roles) > 1 else _nothing(), database(settings) as (url, embedded):
        uvloop.run(_serve(settings, url, roles, embedded))


@contextmanager
def _nothing() -> Iterator[None]:
    yield


async def _serve(settings: Settings, url: str, roles: Sequence[str], embedded: EmbeddedPostgres | None) -> None:
    from app.identity.bootstrap import bootstrap
    from app.inference import front
    from app.kit.secrets import WrongKey
    from app.main import create_app, end, make_context

    try:
        listeners = front.bind(settings.host, settings.port)
    except front.CannotListen as exc:
        raise CommandFailed(str(exc)) from exc
    context = make_context(settings, url)
    try:
        await bootstrap(context)
    except WrongKey as exc:
        raise CommandFailed(str(exc)) from exc
    watch = [asyncio.create_task(embedded.watch(), name="postgres")] if embedded is not None else []
    try:
        await front.serve(create_app(context, roles), context, listeners)
    finally:
        await end(watch)


@cli.command()
def serve() -> None:
    """Run everything on this machine: API, gateway, controller, worker and scheduler."""
    from app.main import ALL_ROLES

    run_roles(Settings(), ALL_ROLES)


@cli.command()
def api() -> None:
    """Run the API and the gateway."""
    run_roles(Settings(), ["api"])


@cli.command()
def gateway() -> None:
    """Run a gateway alone: it passes inference requests on to engines."""
    run_roles(Settings(), ["gateway"])


@cli.command()
def controller() -> None:
    """Run the controller, which makes running engines match the deployments."""
    run_roles(Settings(), ["controller"])


@cli.command()
def worker() -> None:
    """Run the worker, which inspects and converts models, packages bundles and runs tasks."""
    run_roles(Settings(), ["worker"])


@cli.command()
def scheduler() -> None:
    """Run the scheduler: assay windows, cron tasks, log upkeep."""
    run_roles(Settings(), ["scheduler"])


@cli.command()
def engine(document: Annotated[Path, typer.Option(help="The deployment document to start from.")]) -> None:
    """Run one inference engine."""
    os.execv(sys.executable, [sys.executable, "-m", "engine.server", "--document", str(document)])  # noqa: S606


@cli.command()
def migrate(as_json: Annotated[bool, typer.Option("--json", help="Print the revisions as JSON.")] = False) -> None:
    """Bring the database to the schema of this release."""
    from app.kit import migrate as migrations
    from app.kit.postgres import EmbeddedPostgres

    settings = Settings()
    if settings.database_url is None:
        url = EmbeddedPostgres(settings.home / "postgres").start()
    else:
        url = settings.database_url.get_secret_value()
    before, after = migrations.upgrade(url)
    if as_json:
        print(json.dumps({"before": before, "after": after}))  # noqa: T201
    elif before == after:
        console.print(f"The database is at revision {after} already.")
    else:
        console.print(f"Migrated the database from {before or 'empty'} to {after}.")


@cli.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Check database, storage, port, versions and engine, and say what to do; exit status 1 when something fails."""
    from app.doctor import examine

    findings = []
    marks = {"ok": "[green]ok[/green]", "warning": "[yellow]warning[/yellow]", "failed": "[red]failed[/red]"}
    for finding in examine(Settings()):
        findings.append(finding)
        if not as_json:
            console.print(f"{marks[finding.state]:>24}  [bold]{finding.name}[/bold]  {finding.text}")
            if finding.remedy:
                console.print(f"{'':>10}{finding.remedy}")
    if as_json:
        print(json.dumps([dataclasses.asdict(f) for f in findings]))  # noqa: T201
    if any(f.state == "failed" for f in findings):
        raise typer.Exit(1)


@cli.command()
def demo(
    keep: Annotated[bool, typer.Option(help="Leave the instance running and say where it is.")] = False,
) -> None:
    """Try the main job on a throw-away instance: token, upload, deploy, infer, logs."""
    from app import demo as job

    job.run(console, keep=keep)


cli.add_typer(logs, name="logs")


def main() -> None:
    """Run the command line; a reason not to start is one line and exit status 1, not a traceback."""
    try:
        cli()
    except CommandFailed as exc:
        console.print(f"[red]{exc}[/red]")
        sys.exit(1)
