"""Secrets at rest."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr

from app.kit.secrets import KEY_FILE, WrongKey, open_box, write_private
from app.settings import Settings


def with_keys(home: Path, *keys: str) -> Settings:
    return Settings(home=home, secret_key=SecretStr(",".join(keys)))


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")

    sealed = open_box(settings).encrypt(b"word")

    assert b"word" not in sealed
    assert open_box(settings).decrypt(sealed) == b"word"
    assert stat.S_IMODE((tmp_path / "home" / KEY_FILE).stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "home").iterdir()] == [KEY_FILE]


def test_keys_are_changed_one_by_one(tmp_path: Path) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    sealed = open_box(with_keys(tmp_path, old)).encrypt(b"word")

    both = open_box(with_keys(tmp_path, new, old))

    assert both.decrypt(sealed) == b"word"
    with pytest.raises(WrongKey):
        open_box(with_keys(tmp_path, old)).decrypt(both.encrypt(b"word"))


@pytest.mark.parametrize("key", ["", "password", "a" * 44, "é" * 44])
def test_what_is_no_key_is_refused_with_the_way_to_make_one(tmp_path: Path, key: str) -> None:
    with pytest.raises(WrongKey, match="urandom"):
        open_box(with_keys(tmp_path, key))


def test_a_box_does_not_show_its_keys(tmp_path: Path) -> None:
    assert repr(open_box(Settings(home=tmp_path))) == "SecretBox()"


def test_a_private_file_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"

    outcomes = [write_private(path, text, replace=again) for text, again in (("a", False), ("b", False), ("c", True))]

    assert outcomes == [True, False, True]
    assert path.read_text() == "c"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
