"""What is installed for a task."""

from __future__ import annotations

import asyncio
import sys
import zipfile
from pathlib import Path

import pytest

from app.orchestration import environments
from app.settings import Settings


def settings(tmp_path: Path, **more: object) -> Settings:
    return Settings(home=tmp_path / "home").model_copy(update=more)


def wheel(folder: Path, name: str, version: str, needs: tuple[str, ...] = ()) -> None:
    """Write a package that holds nothing but its name and its version."""
    folder.mkdir(exist_ok=True)
    about = f"{name}-{version}.dist-info"
    requires = "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


async def said_by(home: Settings, name: str, code: str) -> str:
    process = await asyncio.create_subprocess_exec(
        str(environments.python_of(home, name)), "-c", code, stdout=asyncio.subprocess.PIPE
    )
    return (await process.communicate())[0].decode().strip()


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("", "wallaroo==2024.4.4\n"),
        ("pandas", "pandas\nwallaroo==2024.4.4\n"),
        ("wallaroo==2023.2.1\n", "wallaroo==2023.2.1\n"),
        ("Wallaroo >= 2024", "Wallaroo >= 2024\n"),
        ("wallaroo-extras==1", "wallaroo-extras==1\nwallaroo==2024.4.4\n"),
        ("# wallaroo is not named here", "# wallaroo is not named here\nwallaroo==2024.4.4\n"),
    ],
)
def test_the_sdk_is_installed_unless_the_bundle_names_it(tmp_path: Path, own: str, expected: str) -> None:
    assert environments.requirements_of(settings(tmp_path, task_sdk="2024.4.4"), own) == expected


def test_without_a_release_the_bundle_alone_counts(tmp_path: Path) -> None:
    assert environments.requirements_of(settings(tmp_path, task_sdk=""), " pandas ") == "pandas\n"


def test_pins_of_old_releases_without_builds_give_way_but_not_those_of_the_bundle() -> None:
    assert environments.overrides_of("wallaroo==2024.4.4") == ()
    assert "pandas==1.5.3" in environments.overrides_of("wallaroo==2023.2.1\n")
    assert "pyarrow==12.0.1" in environments.overrides_of("wallaroo==2023.4.2")
    given = environments.overrides_of("Pandas==1.5.0\nwallaroo == 2023.2.1")
    assert "Pandas==1.5.0" in given
    assert "pandas==1.5.3" not in given


def test_an_environment_is_named_by_its_requirements_in_any_order() -> None:
    assert environments.name_of("a\nb\n\n") == environments.name_of(" b\na")
    assert environments.name_of("a") != environments.name_of("a==1")


async def test_wheels_of_a_folder_are_installed_without_an_index_and_once(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheel(wheels, "ours", "1.0", ("theirs",))
    wheel(wheels, "theirs", "2.0")
    home, lines = settings(tmp_path, package_wheels=wheels), list[str]()

    both = await asyncio.gather(*(environments.ensure(home, "ours==1.0\n", lines.append) for _ in range(2)))

    assert both[0] == both[1]
    assert await said_by(home, both[0], "import ours, theirs; print(ours.version, theirs.version)") == "1.0 2.0"
    assert sum("is there already" in line for line in lines) == 1


async def test_an_old_release_of_the_sdk_gets_builds_in_place_of_its_pins(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheel(wheels, "wallaroo", "2023.2.1", ("pandas==1.3.4", "seaborn==0.11.2"))
    wheel(wheels, "pandas", "1.5.3")
    wheel(wheels, "seaborn", "0.11.2")
    home, lines = settings(tmp_path, package_wheels=wheels), list[str]()

    name = await environments.ensure(home, "wallaroo==2023.2.1\n", lines.append)

    assert await said_by(home, name, "import pandas; print(pandas.version)") == "1.5.3"
    assert any("stand in for pins of the SDK" in line for line in lines)


async def test_an_environment_that_was_half_made_is_made_anew(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheel(wheels, "ours", "1.0")
    home = settings(tmp_path, package_wheels=wheels)
    half = environments.folder_of(home, environments.name_of("ours\n"))
    (half / "bin").mkdir(parents=True)
    (half / "bin" / "python").symlink_to(sys.executable)

    name = await environments.ensure(home, "ours\n", lambda _: None)

    assert await said_by(home, name, "import ours; print(ours.version)") == "1.0"


async def test_a_failed_installation_leaves_nothing_and_tells_the_reason(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    home = settings(tmp_path, package_wheels=tmp_path / "wheels")

    with pytest.raises(environments.PackagingFailed, match="ours-is-not-there"):
        await environments.ensure(home, "ours-is-not-there==1\n", lambda _: None)

    assert not environments.folder_of(home, environments.name_of("ours-is-not-there==1\n")).exists()


async def test_an_installation_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    home = settings(tmp_path, packaging_timeout_s=0)

    with pytest.raises(environments.PackagingFailed, match="longer than 0 s"):
        await environments.ensure(home, "ours\n", lambda _: None)


async def test_the_password_of_an_index_is_not_in_what_the_installer_says(tmp_path: Path) -> None:
    from pydantic import SecretStr

    index = SecretStr("http://reader:hunter2-secret@127.0.0.1:9/simple")
    home, lines = settings(tmp_path, package_index=index), list[str]()

    with pytest.raises(environments.PackagingFailed) as failed:
        await environments.ensure(home, "ours==1\n", lines.append)

    assert "hunter2-secret" not in "\n".join([*lines, str(failed.value)])
