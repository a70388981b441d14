"""`potoroo logs …`: the log store from the machine it lies on."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from app.errors import CommandFailed
from app.logs import service
from app.logs.times import time_range
from app.settings import Settings
from engine.logs import transfer
from engine.logs import verify as checking
from engine.logs.errors import LogError
from engine.logs.query import TimeRange
from engine.logs.transfer import Format

logs = typer.Typer(help="Look after the inference log of this machine.", no_args_is_help=True)
console = Console(stderr=True, highlight=False)

_NUMBERS = ("rows", "MiB", "files", "from", "to", "torn")

TopicOption = Annotated[list[str] | None, typer.Option("--topic", help="Only this topic; may be given several times.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (LogError, ValueError, OSError) as exc:
        raise CommandFailed(str(exc)) from exc


def _progress(unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        console=console,
    )


@logs.command("export")
def export_logs(
    topic: Annotated[str, typer.Argument(help="As workspace-1-pipeline-name-inference.")],
    folder: Annotated[Path, typer.Argument(help="Where the files go; what an interrupted run left there is kept.")],
    *,
    form: Annotated[Format, typer.Option("--format", help="Form of the files.")] = Format.ARROW,
    start: Annotated[str | None, typer.Option(help="RFC 3339; with --end.")] = None,
    end: Annotated[str | None, typer.Option(help="RFC 3339, included; with --start.")] = None,
    file_bytes: Annotated[int, typer.Option(help="About how large a file may get.", min=1)] = 100 << 20,
) -> None:
    """Write a topic into files; a second run goes on where the first one stopped."""
    with _told(), _progress("rows") as progress:
        span: TimeRange | None = time_range(start, end, "--start", "--end")
        store = service.store_of(Settings())
        known = store.describe(topic).partitions
        if not known:
            raise CommandFailed(f"There is no topic {topic}; `potoroo logs stats` lists them.")
        total = sum(found.end - found.start for found in known.values()) if span is None else None
        task = progress.add_task("exporting", total=total, completed=transfer.exported_rows(folder))
        written = transfer.export(store, topic, folder, form=form, time_range=span, file_bytes=file_bytes)
        for file in written:
            progress.update(task, completed=file.total_rows, description=file.path.name)


@logs.command("import")
def import_logs(
    topic: Annotated[str, typer.Argument(help="As workspace-1-pipeline-name-inference.")],
    files: Annotated[list[Path], typer.Argument(help="Arrow, Parquet or JSON-lines files.", exists=True)],
    partition: Annotated[
        str | None, typer.Option(help="Append to this partition; default one of this import's own.")
    ] = None,
) -> None:
    """Append files to a topic. Into a partition of its own, a second run goes on where the first one stopped."""
    paths = transfer.in_order(files)
    with _told(), _progress("files") as progress:
        name = partition or transfer.import_name(paths)
        root = Path(Settings().logs_root)
        task = progress.add_task(f"importing into {name}", total=len(paths))
        added = 0
        for number, path in enumerate(paths):
            progress.update(task, description=path.name)
            source = None if partition else number
            added += transfer.import_file(root, topic, name, path, source=source)
            progress.advance(task)
    console.print(f"{added:,} new records in {topic}, partition {name}.")


@logs.command()
def stats(topic: TopicOption = None, as_json: JsonOption = False) -> None:
    """Show what the log holds."""
    with _told():
        found = list(checking.stats(service.store_of(Settings()), topic))
    if as_json:
        print(json.dumps([dataclasses.asdict(one) for one in found]))  # noqa: T201
        return
    table = Table(*(Column(name, overflow="fold") for name in ("topic", "partition")), *_NUMBERS)
    for one in found:
        files = " ".join(f"{count} {kind}" for kind, count in one.segments.items())
        size = f"{one.size_bytes / 2**20:,.1f}"
        rows = f"{one.end - one.start:,}"
        table.add_row(
            one.topic, one.partition, rows, size, files, _when(one.min_time), _when(one.max_time), str(one.torn_tails)
        )
    # in a pipe there is no width to keep to
    Console(highlight=False, width=None if sys.stdout.isatty() else 240).print(table)


def _when(milliseconds: int | None) -> str:
    if milliseconds is None:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


@logs.command()
def verify(topic: TopicOption = None, as_json: JsonOption = False) -> None:
    """Check all files against their checksums; exit status 1 when something is damaged."""
    files = rows = 0
    damaged: list[checking.Checked] = []
    with _told(), console.status("checking") as status:
        for checked in checking.verify(service.store_of(Settings()), topic):
            files += 1
            rows += checked.rows
            status.update(f"{files} files, {rows:,} records")
            if checked.problems:
                damaged.append(checked)
    if as_json:
        damage = [dataclasses.asdict(one) for one in damaged]
        print(json.dumps({"files": files, "rows": rows, "damaged": damage}))  # noqa: T201
    else:
        console.print(f"{files} files, {rows:,} records: {len(damaged) or 'none'} damaged.")
        for one in damaged:
            for problem in one.problems:
                console.print(f"[red]{one.topic}/{one.partition}/{one.file}[/red]: {problem}")
    if damaged:
        raise typer.Exit(1)
