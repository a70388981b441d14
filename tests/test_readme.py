"""What the README tells a new person to type works as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inference.instance import Instance, running

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

pytestmark = [pytest.mark.slow, pytest.mark.server]


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    with tempfile.TemporaryDirectory(prefix="potoroo-") as folder:
        yield from running(Path(folder) / "home")


def test_the_first_inference_is_made_by_pasting_the_commands(instance: Instance) -> None:
    commands = README.split("## The first inference")[1].split("```sh\n")[1].split("```")[0]
    assert "http://127.0.0.1:8080" in commands
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "POTOROO_HOME": str(instance.home),
        "POTOROO_PORT": str(instance.port),
    }

    script = commands.replace("http://127.0.0.1:8080", instance.base)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    answered, logged = (json.loads(line) for line in done.stdout.strip().splitlines()[-2:])
    assert [len(row["out"]["probabilities"]) for row in answered] == [2]
    assert [row["out"] for row in logged] == [row["out"] for row in answered]


def test_the_demo_runs_to_its_end() -> None:
    demo = [sys.executable, "-m", "app", "demo"]

    done = subprocess.run(demo, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr
    assert re.search(r"All of it took \d+\.\d s", done.stderr)


def test_every_page_it_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
