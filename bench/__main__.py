"""`python -m bench [PART …] [--work FOLDER]`: measure everything, or some parts, and write docs/performance.md.

Each part runs in a process of its own and leaves a section; a part that is not measured now keeps its last one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PARTS = ("dataplane", "profile", "logs", "assays", "startup", "control_plane", "soak")
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
TITLE = "# Performance"


def main() -> None:
    """Measure, then join the sections to one page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="the parts to measure; all of them by default")
    parser.add_argument("--work", type=Path, default=Path("~/.cache/potoroo-bench").expanduser())
    given = parser.parse_args()
    sections: Path = given.work / "sections"
    sections.mkdir(parents=True, exist_ok=True)
    for part in given.parts or PARTS:
        print(f"measuring {part}", flush=True)
        command = [sys.executable, "-m", f"bench.{part}", "--out", str(sections / f"{part}.md")]
        subprocess.run(command, check=True)
    kept = [sections / f"{part}.md" for part in PARTS if (sections / f"{part}.md").exists()]
    texts = [file.read_text().removeprefix(TITLE).strip() for file in kept]
    PAGE.write_text(f"<!-- Written by `make bench`; do not edit. -->\n\n{TITLE}\n\n" + "\n\n".join(texts) + "\n")
    print(PAGE)


if __name__ == "__main__":
    main()
