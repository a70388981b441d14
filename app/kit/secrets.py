"""Secrets at rest: encrypted by the instance's key, or hashed where only a comparison is needed."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from app.kit.context import Context
from app.settings import Settings

PART = "secrets"
"""Under this name `Context.parts` holds the process's `SecretBox`, once it was asked for."""

KEY_FILE = "secret.key"


class WrongKey(Exception):
    """The key cannot open what is stored, or is no key at all; the message is for the person who set it."""


class SecretBox:
    """Encrypts with the first of its keys and decrypts with any of them, so that keys can be changed one by one."""

    def __init__(self, keys: list[str]) -> None:
        try:
            self._ring = MultiFernet([Fernet(key) for key in keys])
        except ValueError as exc:
            raise WrongKey(
                "POTOROO_SECRET_KEY must hold 32 random bytes in URL-safe base64 (several keys: comma-separated, "
                "newest first). Make one with: head -c 32 /dev/urandom | base64 | tr '+/' '-_'"
            ) from exc
        self.has_older_keys = len(keys) > 1

    def __repr__(self) -> str:
        return "SecretBox()"

    def encrypt(self, plain: bytes) -> bytes:
        """Return `plain` encrypted and authenticated."""
        return self._ring.encrypt(plain)

    def decrypt(self, sealed: bytes) -> bytes:
        """Return what was encrypted; raises `WrongKey` when none of the keys fits."""
        try:
            return self._ring.decrypt(sealed)
        except InvalidToken as exc:
            raise WrongKey(
                "A stored secret cannot be decrypted: it was written under another key. Put the former "
                f"POTOROO_SECRET_KEY (or the file {KEY_FILE} of the home) back, or add it behind the new key."
            ) from exc


def open_box(settings: Settings) -> SecretBox:
    """Return the box of this instance: keyed by the setting, or by a file in the home that is made at first use."""
    if settings.secret_key is not None:
        given = settings.secret_key.get_secret_value()
        return SecretBox([key.strip() for key in given.split(",") if key.strip()])
    return SecretBox(_key_file(settings.home / KEY_FILE).split())


def box_of(context: Context) -> SecretBox:
    """Return the process's box."""
    box: SecretBox | None = context.parts.get(PART)
    if box is None:
        box = context.parts[PART] = open_box(context.settings)
    return box


def _key_file(path: Path) -> str:
    """Return the content of the key file; made by the first process that asks, whole or not at all."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(path, Fernet.generate_key().decode() + "\n", replace=False)
    return path.read_text()


def write_private(path: Path, text: str, *, replace: bool) -> bool:
    """Write a file that only its owner may read, atomically; returns whether it was written.

    Without `replace` a file that is there already stays as it is.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            draft.replace(path)
            return True
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
        return True
    finally:
        draft.unlink(missing_ok=True)


def digest(secret: str) -> bytes:
    """Return the hash under which a random secret is stored; too fast for passwords that people choose."""
    return hashlib.sha256(secret.encode()).digest()
