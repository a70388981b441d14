"""The rules for a bundle: a zip with one main.py, at most one requirements.txt, and nothing that leaves its folder."""

from __future__ import annotations

import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from app.errors import Invalid

MAX_FILES = 20_000
MAX_UNPACKED_BYTES = 4 * 1024**3
MAX_RATIO = 200
_JUNK = ("__MACOSX", ".DS_Store", "__pycache__")


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a bundle holds: the path of its main.py, and its requirements' text."""

    entry_point: str
    requirements: str


def inspect(path: Path) -> Bundle:
    """Return what the zip at `path` holds; raises `Invalid` for one that breaks the rules."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _inspect(archive)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, UnicodeDecodeError) as exc:
        raise Invalid("The file is not a valid ZIP archive.") from exc


def _inspect(archive: zipfile.ZipFile) -> Bundle:
    entries = archive.infolist()
    if len(entries) > MAX_FILES:
        raise Invalid(f"The bundle has {len(entries)} files; {MAX_FILES} are allowed.")
    unpacked = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    if unpacked > MAX_UNPACKED_BYTES or (unpacked > 64 * 1024**2 and unpacked > MAX_RATIO * max(packed, 1)):
        raise Invalid(f"The bundle would unpack to {unpacked:,} bytes out of {packed:,}; that is refused.")
    for entry in entries:
        _check(entry)
    files = [entry for entry in entries if not entry.is_dir() and not _is_junk(entry.filename)]
    mains = [entry.filename for entry in files if PurePosixPath(entry.filename).name == "main.py"]
    if not mains:
        raise Invalid("The bundle has no main.py, neither at its root nor in a folder.")
    wanted = [entry for entry in files if PurePosixPath(entry.filename).name == "requirements.txt"]
    if len(wanted) > 1:
        names = ", ".join(sorted(entry.filename for entry in wanted))
        raise Invalid(f"The bundle has more than one requirements.txt ({names}); one is allowed.")
    text = ""
    if wanted:
        if wanted[0].file_size > 1024**2:
            raise Invalid("requirements.txt is larger than 1 MiB.")
        text = archive.read(wanted[0]).decode("utf-8", "replace")
    return Bundle("main.py" if "main.py" in mains else mains[0], text)


def _is_junk(name: str) -> bool:
    return any(part in _JUNK for part in PurePosixPath(name).parts)


def _check(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or name[1:2] == ":":
        raise Invalid(f"The bundle has the path {name!r}, which leaves its folder.")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Invalid(
            f"The bundle has {name!r}, which is a link or a special file; only files and folders are allowed."
        )
    if entry.flag_bits & 0x1:
        raise Invalid(f"{name!r} is encrypted; upload the bundle without a password.")


def unpack(path: Path, folder: Path) -> None:
    """Unpack the checked zip at `path` into `folder`."""
    with zipfile.ZipFile(path) as archive:
        _inspect(archive)
        for entry in archive.infolist():
            if not _is_junk(entry.filename):
                archive.extract(entry, folder)
