"""Pages as a real browser shows them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inference.instance import Instance, running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.server,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    with tempfile.TemporaryDirectory(prefix="potoroo-") as folder:
        yield from running(Path(folder) / "home")


def shown(url: str, profile: Path) -> str:
    """Return the page's DOM after its scripts ran."""
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"),
        *("--virtual-time-budget=15000", "--dump-dom", url),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_the_documentation_lists_the_api_under_its_own_policy(instance: Instance, tmp_path: Path) -> None:
    page = shown(f"{instance.base}/v1/api/docs#/workspaces", tmp_path)

    assert 'id="operations-tag-workspaces"' in page
    assert 'id="operations-tag-inference"' in page
    assert "/v1/api/workspaces/create" in page


def test_whoever_is_not_signed_in_gets_a_form_before_the_device_page(instance: Instance, tmp_path: Path) -> None:
    page = shown(f"{instance.base}/auth/realms/master/device?user_code=ABCD-EFGH", tmp_path)

    assert '<label for="username">' in page
    assert 'type="password"' in page
    assert "<script" not in page
