"""Keeping a log in shape: sealing what its writer left behind, merging small batches, cold Parquet, archive, retention.

Nothing changes under a reader. Positions stay, files are replaced by new ones in one step of the manifest, and the
old files stay for a grace period; a reader that comes later still reads the manifest again and goes on from its
position.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.fs

from engine.logs import layout, manifest, recovery, rewrite
from engine.logs.errors import LogError, PartitionBusy
from engine.logs.manifest import Garbage, Manifest, Segment
from engine.logs.writer import acquire

_FULL = {errno.ENOSPC, errno.EDQUOT}
_RESERVE_BYTES = 1 << 20
"""As much as the manifest of some thousand segments takes."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is done when, and how long records are kept."""

    seal_idle_s: float = 3600.0
    """A partition without a writer is sealed when its last record is this old."""
    merge_batch_rows: int = 1_024
    """Segments with fewer rows than this to a batch are rewritten into large batches."""
    merge_segments: int = 8
    """This many small segments beside each other become one."""
    cold_after_s: float | None = 86_400.0
    """Age at which a segment becomes Parquet; None: never."""
    archive_uri: str | None = None
    """Where Parquet segments move to, as `s3://bucket/prefix`."""
    archive_after_s: float = 7 * 86_400.0
    keep_s: float | None = None
    """Age at which records are deleted, by their own time or that of their arrival, whichever is later; None: never."""
    keep_bytes: int | None = None
    """Bytes that a topic may hold on this disk and in the archive; the oldest segments go first."""
    forget_after_s: float = 30 * 86_400.0
    """How long the name and positions of a partition are kept when nothing is left in it."""
    grace_s: float = 300.0
    """How long replaced files stay for readers that are on their way to them."""


@dataclass
class Report:
    """What maintenance did."""

    sealed: int = 0
    merged: int = 0
    cooled: int = 0
    archived: int = 0
    deleted_segments: int = 0
    deleted_rows: int = 0
    files_removed: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Add what was done elsewhere."""
        self.sealed += other.sealed
        self.merged += other.merged
        self.cooled += other.cooled
        self.archived += other.archived
        self.deleted_segments += other.deleted_segments
        self.deleted_rows += other.deleted_rows
        self.files_removed += other.files_removed
        self.problems += other.problems


def maintain(root: Path | str, policy: Policy, *, now: float | None = None) -> Report:
    """Do what is due in all topics. Running it twice, or in two processes at once, is harmless."""
    report = Report()
    for topic in layout.topics_of(Path(root)):
        report.add(maintain_topic(root, topic, policy, now=now))
    return report


def maintain_topic(root: Path | str, topic: str, policy: Policy, *, now: float | None = None) -> Report:
    """Do what is due in a topic; what cannot be done is named in `problems` and tried again the next time.

    Retention works on a disk that is full to the last byte, too.
    """
    now = time.time() if now is None else now
    report = Report()
    reserve = Path(root) / layout.RESERVE
    folders = [layout.partition_path(Path(root), topic, name) for name in layout.partitions_of(Path(root), topic)]
    for folder in folders:
        try:
            with _alone(folder):
                _seal_idle(folder, policy, now, report)
                _compact(folder, topic, policy, now, report)
        except (OSError, LogError) as exc:
            if not isinstance(exc, PartitionBusy):
                report.problems.append(f"{folder}: {exc}")
    try:
        _retain(folders, policy, now, report, reserve)
    except (OSError, LogError) as exc:
        report.problems.append(f"{layout.topic_path(Path(root), topic)}: {exc}")
    for folder in folders:
        try:
            with _alone(folder):
                report.files_removed += _clean(folder, policy, now)
                _forget(folder, policy, now)
        except (OSError, LogError) as exc:
            if not isinstance(exc, PartitionBusy):
                report.problems.append(f"{folder}: {exc}")
    try:
        _put_by(reserve)
    except OSError as exc:
        report.problems.append(f"{reserve}: {exc}")
    return report


def _put_by(reserve: Path) -> None:
    """Keep some room for the manifest that says what was deleted."""
    if reserve.exists() or not reserve.parent.is_dir():
        return
    manifest.write_durably(reserve, bytes(_RESERVE_BYTES))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the partition's maintenance; raises `PartitionBusy` while another process does."""
    fd = os.open(folder / "maintenance.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PartitionBusy(f"{folder} is being maintained by another process.") from None
        yield
    finally:
        os.close(fd)


def _seal_idle(folder: Path, policy: Policy, now: float, report: Report) -> None:
    """Seal what a writer left behind that is gone."""
    end = manifest.load(folder).end
    stale = [path for path in folder.glob("*.log") if int(path.stem) >= end]
    if not stale or max(path.stat().st_mtime for path in stale) > now - policy.seal_idle_s:
        return
    try:
        lock = acquire(folder, folder.name, 0.0)
    except PartitionBusy:
        return
    try:
        active = recovery.recover(folder, now).active
        if active is not None:
            recovery.seal(folder, active, now)
            active.close()
            report.sealed += 1
    finally:
        os.close(lock)


def _compact(folder: Path, topic: str, policy: Policy, now: float, report: Report) -> None:
    for group in _mergeable(manifest.load(folder), policy):
        made = rewrite.merge(folder, manifest.load(folder), group)
        if _replace(folder, group, made, now):
            report.merged += len(group)
    loaded = manifest.load(folder)
    for entry in loaded.segments:
        age_s = now - _age_mark(entry)
        if entry.tier < 2 and policy.cold_after_s is not None and age_s >= policy.cold_after_s:
            if _replace(folder, [entry], rewrite.cool(folder, loaded, entry), now):
                report.cooled += 1
        elif _is_for_archive(entry, policy, age_s):
            moved = _archive(folder, topic, entry, policy.archive_uri or "")
            if _replace(folder, [entry], rewrite.Rewritten([moved], loaded.schemas), now):
                report.archived += 1


def _is_for_archive(entry: Segment, policy: Policy, age_s: float) -> bool:
    is_here = entry.kind == "parquet" and "://" not in entry.file
    return bool(policy.archive_uri) and is_here and age_s >= policy.archive_after_s


def _age_mark(entry: Segment) -> float:
    """Return the time that a segment's age counts from: imported history is as old as its import."""
    return max(entry.max_time / 1000, entry.sealed_at)


def _mergeable(loaded: Manifest, policy: Policy) -> list[list[Segment]]:
    """Choose what to rewrite: many small segments beside each other, or one of many small batches."""
    groups: list[list[Segment]] = []
    run: list[Segment] = []

    def finish() -> None:
        if len(run) >= policy.merge_segments:
            groups.append(list(run))
        else:
            groups.extend([entry] for entry in run if _has_small_batches(entry, policy))
        run.clear()

    for entry in loaded.segments:
        if entry.kind != "log" or entry.tier >= 2:
            finish()
            continue
        if run and run[-1].end != entry.start:
            finish()
        if entry.rows > rewrite.SEGMENT_ROWS // 8 or entry.size_bytes > rewrite.SEGMENT_BYTES // 8:
            finish()
            if _has_small_batches(entry, policy):
                groups.append([entry])
            continue
        run.append(entry)
        rows, size = sum(e.rows for e in run), sum(e.size_bytes for e in run)
        if rows >= rewrite.SEGMENT_ROWS or size >= rewrite.SEGMENT_BYTES:
            finish()
    finish()
    return groups


def _has_small_batches(entry: Segment, policy: Policy) -> bool:
    return entry.tier == 0 and entry.batches >= 16 and entry.rows < policy.merge_batch_rows * entry.batches


def _replace(folder: Path, old: list[Segment], made: rewrite.Rewritten, now: float) -> bool:
    """Put rewritten segments in the place of the old ones, in one step; False if these are gone meanwhile."""
    starts = {(entry.start, entry.file) for entry in old}
    with manifest.changing(folder) as changed:
        if not starts <= {(entry.start, entry.file) for entry in changed.segments}:
            changed.garbage += _files(made.segments, now, but=old)
            return False
        kept = [entry for entry in changed.segments if (entry.start, entry.file) not in starts]
        changed.segments = sorted([*kept, *made.segments], key=lambda entry: entry.start)
        changed.schemas.update(made.schemas)
        changed.garbage += _files(old, now, but=made.segments)
    return True


def _files(entries: list[Segment], now: float, *, but: list[Segment]) -> list[Garbage]:
    spared = {name for entry in but for name in (entry.file, entry.index)}
    names = [name for entry in entries for name in (entry.file, entry.index) if name not in spared]
    return [Garbage(file=name, since=now) for name in names]


def _archive(folder: Path, topic: str, entry: Segment, uri: str) -> Segment:
    """Copy a segment's file to the archive and return the entry that reads it from there."""
    base, mark, options = uri.partition("?")  # an endpoint of one's own comes as an option
    target = f"{base.rstrip('/')}/{layout.folder_name(topic)}/{folder.name}/{entry.file}{mark}{options}"
    if target.startswith("s3://"):  # a small object is one request instead of three
        filesystem, path = pyarrow.fs.FileSystem.from_uri(f"{target}{'&' if mark else '?'}allow_delayed_open=true")
    else:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(target)
        filesystem.create_dir(os.path.dirname(path), recursive=True)
    with pa.OSFile(str(folder / entry.file), "rb") as source, filesystem.open_output_stream(path) as sink:
        while chunk := source.read(8 << 20):
            sink.write(chunk)
    size = filesystem.get_file_info(path).size
    if size != entry.size_bytes:
        raise LogError(f"{path} has {size} bytes after the copy; {entry.size_bytes} were expected.")
    return msgspec.structs.replace(entry, file=target)


def _retain(folders: list[Path], policy: Policy, now: float, report: Report, reserve: Path) -> None:
    """Delete from the front of partitions what is too old or too much."""
    if policy.keep_s is None and policy.keep_bytes is None:
        return
    heads = {folder: manifest.load(folder) for folder in folders}
    total = sum(entry.size_bytes for loaded in heads.values() for entry in loaded.segments)
    for folder, loaded in heads.items():
        total += sum(path.stat().st_size for path in folder.glob("*.log") if int(path.stem) >= loaded.end)
    doomed: dict[Path, int] = dict.fromkeys(folders, 0)
    while True:
        firsts = [(loaded.segments[doomed[f]], f) for f, loaded in heads.items() if doomed[f] < len(loaded.segments)]
        if not firsts:
            break
        entry, folder = min(firsts, key=lambda first: (_age_mark(first[0]), first[1]))
        too_old = policy.keep_s is not None and now - _age_mark(entry) > policy.keep_s
        too_much = policy.keep_bytes is not None and total > policy.keep_bytes
        if not too_old and not too_much:
            break
        doomed[folder] += 1
        total -= entry.size_bytes
    for folder, count in doomed.items():
        if count:
            until = heads[folder].segments[count - 1].end
            gone = _delete_before(folder, until, now, reserve)
            report.deleted_segments += len(gone)
            report.deleted_rows += sum(entry.rows for entry in gone)


def _delete_before(folder: Path, position: int, now: float, reserve: Path) -> list[Segment]:
    """Take segments out of the manifest, and on a full disk their files away at once, which readers get over."""
    try:
        return _drop_before(folder, position, now)
    except OSError as exc:
        if exc.errno not in _FULL:
            raise
    try:
        gone = _drop_before(folder, position, now, reserve)
    except OSError as exc:
        if exc.errno not in _FULL and not isinstance(exc, FileNotFoundError):
            raise
        # nothing was put by: until the manifest is written, which a crash here leaves to the next time, readers miss
        # files that it still names
        _unlink(folder, _before(manifest.load(folder), position))
        return _drop_before(folder, position, now)
    _unlink(folder, gone)
    return gone


def _drop_before(folder: Path, position: int, now: float, reserve: Path | None = None) -> list[Segment]:
    with manifest.changing(folder, reserve) as changed:
        gone = _before(changed, position)
        changed.segments = changed.segments[len(gone) :]
        changed.start = changed.segments[0].start if changed.segments else changed.end
        changed.garbage += _files(gone, now, but=[])
    return gone


def _before(loaded: Manifest, position: int) -> list[Segment]:
    return [entry for entry in loaded.segments if entry.end <= position]


def _unlink(folder: Path, entries: list[Segment]) -> None:
    for entry in entries:
        for name in (entry.file, entry.index):
            if "://" not in name:
                (folder / name).unlink(missing_ok=True)


def _clean(folder: Path, policy: Policy, now: float) -> int:
    """Remove files that nothing needs: replaced ones after the grace period, and what a crash left half done."""
    loaded = manifest.load(folder)
    due = [entry for entry in loaded.garbage if entry.since + policy.grace_s <= now]
    for entry in due:
        if "://" in entry.file:
            filesystem, path = pyarrow.fs.FileSystem.from_uri(entry.file)
            if filesystem.get_file_info(path).type != pyarrow.fs.FileType.NotFound:
                filesystem.delete_file(path)
        else:
            (folder / entry.file).unlink(missing_ok=True)
    if due:
        removed = {entry.file for entry in due}
        with manifest.changing(folder) as changed:
            changed.garbage = [entry for entry in changed.garbage if entry.file not in removed]
    return len(due) + _sweep(folder, policy, now)


def _sweep(folder: Path, policy: Policy, now: float) -> int:
    loaded = manifest.load(folder)
    needed = {name for entry in loaded.segments for name in (entry.file, entry.index)}
    needed |= {entry.file for entry in loaded.garbage}
    count = 0
    for path in folder.iterdir():
        modified_at = _modified_at(path)
        is_idle = modified_at is not None and modified_at + policy.grace_s < now
        if is_idle and path.name not in needed and _is_left_over(path, loaded.end):
            path.unlink(missing_ok=True)
            count += 1
    return count


def _forget(folder: Path, policy: Policy, now: float) -> None:
    """Remove a partition that nothing is left of: engines come and go under ever new names."""
    loaded = manifest.load(folder)
    modified_at = _modified_at(folder / layout.MANIFEST)
    if loaded.segments or loaded.garbage or modified_at is None or modified_at + policy.forget_after_s > now:
        return
    try:
        lock = acquire(folder, folder.name, 0.0)
    except PartitionBusy:
        return
    try:
        if not any(folder.glob("*.log")):
            shutil.rmtree(folder)
    finally:
        os.close(lock)


def _modified_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # a temporary file of the writer, in its place by now
        return None


def _is_left_over(path: Path, end: int) -> bool:
    if path.suffix in {".idx", ".log"} and path.stem.isdigit():
        return int(path.stem) < end  # beyond the end, it belongs to a segment on its way into the manifest
    return path.suffix in {".idx", ".seg", ".parquet", ".tmp"}
