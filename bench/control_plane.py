"""Measure the calls behind the SDK's listings: `python -m bench.control_plane [--out FILE]`.

500 models of 4 versions each, 300 pipelines, 100 workspaces, a workspace with 1,000 versions of one model, on a server
of its own; for each call the median and the slowest of 30.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from app.kit import db
from app.kit.postgres import EmbeddedPostgres
from bench.startup import Server

ROUNDS = 30

_FILL = """
INSERT INTO models (name, workspace_id) SELECT 'm' || g, {many} FROM generate_series(1, 500) g;
INSERT INTO models (name, workspace_id) VALUES ('deep', {deep});
INSERT INTO model (model_id, models_pk_id, status, sha, file_name, file_size, conversion)
    SELECT m.name, m.id, 'ready', repeat('a', 64), 'f.onnx', 9,
           '{{"framework": "onnx", "python_version": "3.8", "requirements": [], "arch": "x86", "accel": "none"}}'::jsonb
    FROM models m, generate_series(1, CASE m.name WHEN 'deep' THEN 1000 ELSE 4 END);
INSERT INTO model_config (model_id, runtime) SELECT id, 'onnx' FROM model;
INSERT INTO pipeline (pipeline_id, workspace_id) SELECT 'p' || g, {many} FROM generate_series(1, 300) g;
INSERT INTO pipeline_version (pipeline_pk_id, definition) SELECT id, '{{"steps": []}}'::jsonb
    FROM pipeline, generate_series(1, 3);
INSERT INTO deployment (deploy_id, pipeline_id) SELECT pipeline_id, id FROM pipeline WHERE id % 2 = 0;
INSERT INTO tag (tag, owner_id) SELECT 't' || g, 'someone' FROM generate_series(1, 20) g;
INSERT INTO pipeline_tag (pipeline_pk_id, tag_pk_id)
    SELECT p.id, t.id FROM pipeline p, tag t WHERE (p.id + t.id) % 10 = 0;
ANALYZE;
"""

_PIPELINES = "{ pipeline(order_by: {id: desc}) { id pipeline_tags { tag { id tag } } } }"
_WORKSPACE = (
    "query WorkspaceById($id: bigint!) { workspace_by_pk(id: $id) { archived created_at created_by name id "
    "users { user_id } models%s { id models { id } } pipelines { id } } }"
)


def fill(server: Server) -> tuple[int, int]:
    """Fill the server's database; returns the workspace with many models and the one with many versions."""
    keys = [server.call("workspaces/create", {"workspace_name": f"team-{n}"})["workspace_id"] for n in range(100)]
    url = EmbeddedPostgres(server.home / "postgres").start()  # it runs: this only tells where
    with psycopg.connect(db.plain_url(url), autocommit=True) as connection:
        for statement in _FILL.format(many=keys[0], deep=keys[1]).split(";\n"):
            if statement.strip():
                connection.execute(statement)
    return keys[0], keys[1]


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Return the median and the longest seconds of a call."""
    call()
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times), max(times)


def measure() -> dict[str, tuple[tuple[float, float], float]]:
    """Return the figures and the aim in seconds, by what was measured."""
    with tempfile.TemporaryDirectory(prefix="potoroo-lists-") as folder:
        server = Server(Path(folder) / "home")
        server.start()
        try:
            server.sign_in()
            many, deep = fill(server)

            def ask(query: str, **variables: Any) -> Any:
                answer = server.client.post("/v1/graphql", json={"query": query, "variables": variables}).json()
                assert "errors" not in answer, answer
                return answer["data"]

            def send(path: str, body: dict[str, Any]) -> Callable[[], Any]:
                """Return a call that reads the answer without decoding it: that is the client's time."""
                return lambda: server.client.post(path, json=body).raise_for_status()

            def query(document: str, **variables: Any) -> Callable[[], Any]:
                return send("/v1/graphql", {"query": document, "variables": variables})

            listed = server.call("models/list", {"workspace_id": many})["models"]
            assert len(listed) == 500, len(listed)
            assert len(ask(_PIPELINES)["pipeline"]) == 300
            (versions,) = ask(_WORKSPACE % "", id=deep)["workspace_by_pk"]["models"]
            assert len(versions["models"]) == 1000
            newest = _WORKSPACE % "(order_by: {updated_at: desc})"
            return {
                "`list_models`, 500 models of 4 versions": (
                    timed(send("/v1/api/models/list", {"workspace_id": many})),
                    0.1,
                ),
                "`list_pipelines`, 300 (REST)": (timed(send("/v1/api/pipelines/list_pipelines", {})), 0.1),
                "`list_pipelines`, 300 (GraphQL)": (timed(query(_PIPELINES)), 0.1),
                "`list_workspaces`, 100": (timed(send("/v1/api/workspaces/list", {})), 0.1),
                "`WorkspaceById`, 1,000 versions": (timed(query(_WORKSPACE % "", id=deep)), 0.02),
                "`WorkspaceById`, 1,000 versions, newest first": (timed(query(newest, id=deep)), 0.02),
                "`WorkspaceById`, 500 models of 4 versions": (timed(query(_WORKSPACE % "", id=many)), 0.1),
            }
        finally:
            server.stop()


def table(found: dict[str, tuple[tuple[float, float], float]]) -> str:
    """Return the figures as a section of a Markdown page."""
    rows = [
        f"| {name} | {median * 1000:.1f} ms | {longest * 1000:.1f} ms | ≤ {aim * 1000:.0f} ms |\n"
        for name, ((median, longest), aim) in found.items()
    ]
    return (
        f"## Listings of the control plane\n\nOne client, {ROUNDS} calls each.\n\n"
        "| call | median | longest | aim |\n| --- | --: | --: | --: |\n" + "".join(rows)
    )


def main() -> None:
    """Measure and print, or write to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the section to this file")
    given = parser.parse_args()
    section = table(measure())
    if given.out:
        given.out.write_text(section)
    print(section)


if __name__ == "__main__":
    main()
