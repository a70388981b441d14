"""Writes the pages of docs/ that follow from the code: configuration, command line, metrics."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import typer
from prometheus_client import REGISTRY
from pydantic import SecretStr

from app import main  # noqa: F401 - imports every module, so that every metric is registered
from app.cli import cli
from app.settings import Settings
from engine.server.metrics import HELP

HERE = Path(__file__).parent
NOTE = "<!-- Written by `make docs`; do not edit. -->\n\n"


def configuration() -> str:
    """Return the page of all settings."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        secret = SecretStr in (field.annotation, *getattr(field.annotation, "__args__", ()))
        text = (field.description or "") + (" Secret." if secret else "")
        rows.append(f"| `POTOROO_{name.upper()}` | {default} | {text} |")
    return (
        NOTE + "# Configuration\n\nSettings are environment variables, read once at start.\n\n"
        "| variable | default | what it does |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )


def commands(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command below `command` with the words that call it."""
    if isinstance(command, click.Group) or hasattr(command, "commands"):
        for name, inner in sorted(command.commands.items()):
            yield from commands(inner, (*words, name))
    else:
        yield words, command


def command_line() -> str:
    """Return the page of all commands and their options."""
    out = [NOTE, "# Command line\n"]
    for words, command in commands(typer.main.get_command(cli), ("potoroo",)):
        out.append(f"\n## `{' '.join(words)}`\n\n{(command.help or '').strip()}\n")
        rows = [_parameter(p) for p in command.params if p.name != "help"]
        if rows:
            out.append("\n| option | default | what it does |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n")
    return "".join(out)


def _parameter(parameter: Any) -> str:
    name = ", ".join(parameter.opts) if parameter.param_type_name == "option" else f"<{parameter.name}>"
    default = parameter.default
    shown = "" if default in (None, False, ...) or "Sentinel" in repr(default) else f"`{default}`"
    return f"| `{name}` | {shown} | {getattr(parameter, 'help', None) or ''} |"


def metrics() -> str:
    """Return the page of all metrics."""
    ours = [(f.name, f.type, f.documentation) for f in REGISTRY.collect() if f.name.startswith("potoroo")]
    engines = [(name, kind, text) for name, (kind, text) in HELP.items()]
    return (
        NOTE + "# Metrics\n\nPrometheus metrics, on `/metrics` without a token.\n\n"
        f"## Control plane\n\n{_table(sorted(ours))}\n## Engines\n\n{_table(engines)}"
    )


def _table(rows: list[tuple[str, str, str]]) -> str:
    lines = [f"| `{name}` | {kind} | {text} |" for name, kind, text in rows]
    return "| metric | kind | what it counts |\n| --- | --- | --- |\n" + "\n".join(lines) + "\n"


PAGES = {"configuration.md": configuration, "command-line.md": command_line, "metrics.md": metrics}

if __name__ == "__main__":
    for page, make in PAGES.items():
        (HERE / page).write_text(make())
        sys.stdout.write(f"docs/{page}\n")
