"""Files out of a log and into one: Arrow, Parquet, JSON lines; both directions go on where they stopped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec
import pyarrow as pa

from engine.contract.codecs import decode_records, to_rows
from engine.contract.records import zero_like
from engine.logs.errors import InvalidRecord, LogError
from engine.logs.manifest import write_durably
from engine.logs.query import Order, Status, TimeRange, read_page
from engine.logs.records import check_schema, time_bounds
from engine.logs.store import LogStore
from engine.logs.writer import PartitionWriter

STATE = ".export.json"
PAGE_ROWS = 10_000
_LINES = 5_000


class Format(StrEnum):
    """Form of the files."""

    ARROW = "arrow"
    PARQUET = "parquet"
    JSON = "json"


class ExportState(msgspec.Struct):
    """How far an export got: kept beside its files."""

    topic: str
    form: Format
    time_range: tuple[int, int] | None
    prefix: str
    positions: dict[str, int] = {}
    files: int = 0
    rows: int = 0
    is_done: bool = False


@dataclass(frozen=True)
class Written:
    """A file that an export finished."""

    path: Path
    rows: int
    total_rows: int


def export(
    store: LogStore,
    topic: str,
    folder: Path,
    *,
    form: Format = Format.ARROW,
    time_range: TimeRange | None = None,
    prefix: str = "pipeline_logs",
    file_bytes: int = 100 << 20,
) -> Iterator[Written]:
    """Write a topic into files `<prefix>-<n>.<form>` of one schema each, and yield each one as it is finished.

    What is in the folder from an interrupted run of the same export is kept, and the export goes on after it. Raises
    `LogError` when the folder holds another export.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = _resume(folder, ExportState(topic, form, time_range and (time_range.start, time_range.end), prefix))
    positions: Mapping[str, int] = state.positions
    pages: list[pa.Table] = []
    while not state.is_done:
        page = read_page(store, topic, order=Order.ASC, page_size=PAGE_ROWS, positions=positions, time_range=time_range)
        changes = bool(pages) and page.table.num_rows > 0 and not pages[0].schema.equals(
            page.table.schema, check_metadata=True
        )  # fmt: skip
        if changes:
            yield _finish(folder, state, pages, positions)
            pages = []
        if page.table.num_rows:
            pages.append(page.table)
        positions = page.next
        ended = page.status is Status.ALL and page.table.num_rows == 0
        if pages and (ended or sum(table.nbytes for table in pages) >= file_bytes):
            yield _finish(folder, state, pages, positions)
            pages = []
        if ended:
            state.is_done = True
            write_durably(folder / STATE, msgspec.json.encode(state))


def exported_rows(folder: Path) -> int:
    """Return how many rows the export in a folder has finished."""
    path = folder / STATE
    return msgspec.json.decode(path.read_bytes(), type=ExportState).rows if path.exists() else 0


def _resume(folder: Path, wanted: ExportState) -> ExportState:
    path = folder / STATE
    if not path.exists():
        return wanted
    found = msgspec.json.decode(path.read_bytes(), type=ExportState)
    asked = (wanted.topic, wanted.form, wanted.time_range, wanted.prefix)
    if (found.topic, found.form, found.time_range, found.prefix) != asked:
        raise LogError(f"{folder} holds an export of {found.topic} with other options; choose another folder.")
    found.is_done = False  # what came since the last run is exported, too
    return found


def _finish(folder: Path, state: ExportState, pages: list[pa.Table], positions: Mapping[str, int]) -> Written:
    path = folder / f"{state.prefix}-{state.files + 1}.{state.form}"
    temporary = path.with_name(f".{path.name}.part")
    table = pa.concat_tables(pages)
    _write(temporary, table, state.form)
    temporary.replace(path)
    state.files += 1
    state.rows += table.num_rows
    state.positions = dict(positions)
    write_durably(folder / STATE, msgspec.json.encode(state))
    return Written(path, table.num_rows, state.rows)


def _write(path: Path, table: pa.Table, form: Format) -> None:
    if form is Format.ARROW:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    elif form is Format.PARQUET:
        import pyarrow.parquet as pq

        pq.write_table(table, path, compression="zstd")
    else:
        with path.open("wb") as file:
            for batch in table.to_batches(max_chunksize=_LINES):
                for row in to_rows(batch):
                    file.write(msgspec.json.encode(row) + b"\n")


def form_of(path: Path) -> Format:
    """Return the form of a file by its name; raises `LogError` for one that is none of them."""
    forms = {".arrow": Format.ARROW, ".parquet": Format.PARQUET, ".json": Format.JSON, ".jsonl": Format.JSON}
    if path.suffix not in forms:
        raise LogError(f"{path.name}: only .arrow, .parquet, .json and .jsonl files can be imported.")
    return forms[path.suffix]


def rows_of(path: Path, form: Format) -> Iterator[pa.RecordBatch]:
    """Yield the records of a file, a few thousand at a time."""
    if form is Format.ARROW:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
            for number in range(file.num_record_batches):
                yield file.get_batch(number)
    elif form is Format.PARQUET:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            yield from file.iter_batches()
    else:
        with path.open("rb") as file:
            lines: list[bytes] = []
            for line in file:
                if line.strip():
                    lines.append(line.strip())
                if len(lines) >= _LINES:
                    yield _decoded(lines)
                    lines = []
            if lines:
                yield _decoded(lines)


def _decoded(lines: list[bytes]) -> pa.RecordBatch:
    return decode_records(b"[" + b",".join(lines) + b"]")


def import_file(
    root: Path,
    topic: str,
    partition: str,
    path: Path,
    *,
    source: int | None = None,
    progress: Callable[[int], None] = lambda _rows: None,
) -> int:
    """Append a file's records to a partition and return how many were new.

    `source` is a number below 2**21 for the file among those of one import into a partition of its own: a second run
    with the same numbers goes on where the first one stopped. Raises `InvalidRecord` for records that a log cannot
    hold.
    """
    sequence = None if source is None else (source << 40) + 1
    added = 0
    with PartitionWriter(root, topic, partition) as writer:
        for batch in rows_of(path, form_of(path)):
            before = writer.end
            writer.append(fit(batch), sequence=sequence)
            writer.flush()
            sequence = None if sequence is None else sequence + batch.num_rows
            added += writer.end - before
            progress(batch.num_rows)
    return added


def fit(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch from elsewhere as a log keeps it: `time` first, plain values, nulls as zeroes and empty lists.

    Raises `InvalidRecord` where that is not possible.
    """
    at = batch.schema.get_field_index("time")
    if at < 0:
        raise InvalidRecord('The records have no column "time".')
    order = [at, *(i for i in range(batch.num_columns) if i != at)]
    batch = batch.select(order)
    arrays = [_plain(array) for array in batch.columns]
    if pa.types.is_timestamp(arrays[0].type):
        arrays[0] = arrays[0].cast(pa.timestamp("ms")).cast(pa.int64())
    schema = pa.schema([f.with_type(a.type) for f, a in zip(batch.schema, arrays, strict=True)])
    plain = pa.RecordBatch.from_arrays(arrays, schema=schema.with_metadata(batch.schema.metadata))
    check_schema(plain.schema)
    if plain.num_rows:
        time_bounds(plain)
    arrays = [zero_like(array) for array in arrays]
    schema = pa.schema([f.with_type(a.type) for f, a in zip(plain.schema, arrays, strict=True)])
    return pa.RecordBatch.from_arrays(arrays, schema=schema.with_metadata(batch.schema.metadata))


def _plain(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def import_name(paths: list[Path]) -> str:
    """Return a partition name for an import of these files: the same for the same files, so that it can go on."""
    mark = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            mark.update(f"{path.name}:{path.stat().st_size}:".encode() + file.read(1 << 20))
    return f"import-{mark.hexdigest()[:12]}"


def in_order(paths: list[Path]) -> list[Path]:
    """Return files in the order of their numbers, as an export wrote them: `logs-2` before `logs-10`."""

    def key(path: Path) -> tuple[str, int, str]:
        stem, _, number = path.stem.rpartition("-")
        return (stem, int(number), path.name) if number.isdigit() else (path.stem, 0, path.name)

    return sorted(paths, key=lambda path: (os.fspath(path.parent), key(path)))
