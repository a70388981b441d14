"""Fixtures of the tests of the log."""

from __future__ import annotations

from tests.kit.test_storage import s3_url

__all__ = ["s3_url"]
