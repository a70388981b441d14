"""What a bundle may hold."""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import Path

import pytest

from app.errors import Invalid
from app.orchestration import bundles


def zipped(files: dict[str, bytes | str], **options: int) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", **options) as archive:  # type: ignore[arg-type]
        for name, content in files.items():
            archive.writestr(name, content)
    return sink.getvalue()


def inspected(tmp_path: Path, raw: bytes) -> bundles.Bundle:
    path = tmp_path / "bundle.zip"
    path.write_bytes(raw)
    return bundles.inspect(path)


def test_main_at_the_root_is_the_entry_point(tmp_path: Path) -> None:
    found = inspected(tmp_path, zipped({"lib/main.py": "", "main.py": "", "requirements.txt": "numpy\n"}))

    assert found == bundles.Bundle("main.py", "numpy\n")


def test_else_the_first_main_in_a_folder_and_junk_does_not_count(tmp_path: Path) -> None:
    found = inspected(tmp_path, zipped({"__MACOSX/main.py": "", "job/main.py": "", "other/main.py": ""}))

    assert found.entry_point == "job/main.py"


@pytest.mark.parametrize(
    "files",
    [
        {"other.py": ""},
        {"main.py": "", "../evil.py": ""},
        {"main.py": "", "/etc/passwd": ""},
        {"main.py": "", "C:\\evil.py": ""},
        {"main.py": "", "a\\..\\..\\evil.py": ""},
        {"main.py": "", "requirements.txt": "", "job/requirements.txt": ""},
    ],
)
def test_bundles_that_break_the_rules_are_refused(tmp_path: Path, files: dict[str, bytes | str]) -> None:
    with pytest.raises(Invalid):
        inspected(tmp_path, zipped(files))


def test_links_are_refused(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("main.py", "")
        link = zipfile.ZipInfo("out")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")

    with pytest.raises(Invalid, match="link"):
        inspected(tmp_path, sink.getvalue())


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = zipped({"main.py": "", "zeroes": bytes(100 * 1024**2)}, compression=zipfile.ZIP_DEFLATED)

    with pytest.raises(Invalid, match="unpack"):
        inspected(tmp_path, bomb)


@pytest.mark.parametrize("raw", [b"", b"not a zip", zipped({"main.py": "x" * 100})[:-30]])
def test_what_is_no_zip_is_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(Invalid, match="ZIP"):
        inspected(tmp_path, raw)
