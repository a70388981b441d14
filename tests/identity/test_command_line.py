"""The commands on a database of their own, and what happens when several processes do the same at once."""

from __future__ import annotations

import asyncio
import json
import stat
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner

from app.cli import cli
from app.errors import TooManyRequests, Unauthenticated
from app.identity import attempts, parts
from app.identity.bootstrap import bootstrap
from app.identity.caller import authenticator_of
from app.identity.directory import Changes, managed_directory_of
from app.identity.login import check_password
from app.identity.tables import Client, SigningKey, User
from app.identity.tokens import offline_token
from app.kit import db, migrate
from app.kit.context import Context
from app.kit.events import Events
from app.kit.storage import open_storage
from app.settings import Settings


@pytest.fixture(scope="module")
def own_url(postgres_url: str) -> str:
    """A migrated database whose changes stay, for this module alone."""
    name = f"potoroo_identity_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(db.plain_url(postgres_url), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        current = connection.info.dbname
    url = postgres_url.replace(f"/{current}", f"/{name}")
    migrate.upgrade(url)
    return url


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def potoroo(own_url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command and returns what it did."""
    monkeypatch.setenv("POTOROO_DATABASE_URL", own_url)
    monkeypatch.setenv("POTOROO_HOME", str(home))

    async def run(*words: str, stdin: str | None = None) -> Any:
        return await asyncio.to_thread(CliRunner().invoke, cli, list(words), input=stdin)

    return run


def process(own_url: str, home: Path) -> Context:
    """Return the context of one more process on the instance."""
    engine = db.connect(own_url, 5)
    settings = Settings(home=home)
    return Context(
        settings=settings,
        database=engine,
        sessions=db.sessions_on(engine),
        events=Events(db.plain_url(own_url)),
        storage=open_storage(settings.blobs_url),
    )


@pytest.fixture
async def processes(own_url: str, home: Path) -> AsyncIterator[list[Context]]:
    """Two processes of one instance that hear of each other."""
    made = [process(own_url, home) for _ in range(2)]
    for context in made:
        context.events.start()
        await parts.open_parts(context)
    yield made
    for context in made:
        await context.events.stop()
        await context.database.dispose()


async def test_several_first_starts_at_once_make_one_of_each(processes: list[Context]) -> None:
    await asyncio.gather(*(bootstrap(context) for context in [*processes, *processes]))

    async with processes[0].sessions() as session:
        counts = [await session.scalar(select(func.count()).select_from(t)) for t in (SigningKey, User, Client)]
    assert counts == [1, 1, 2]
    assert stat.S_IMODE((processes[0].settings.home / "creds.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((processes[0].settings.home / "secret.key").stat().st_mode) == 0o600


async def test_a_user_is_made_listed_and_given_a_new_password(potoroo: Any) -> None:
    made = await potoroo("users", "create", "Ann@example.test", "--admin", "--json")
    again = await potoroo("users", "create", "ann@example.test")
    given = await potoroo("users", "create", "bob@example.test", "--password-stdin", stdin="long enough\n")
    reset = await potoroo("users", "reset-password", "ann@example.test")
    listed = await potoroo("users", "list", "--json")
    table = await potoroo("users", "list")

    assert json.loads(made.stdout)["username"] == "ann@example.test"
    assert (again.exit_code, given.exit_code, reset.exit_code) == (1, 0, 0)
    assert "exists already" in again.stderr
    assert "password" not in given.stdout
    assert "password: " in reset.stdout
    rows = {row["username"]: row for row in json.loads(listed.stdout)}
    assert rows["ann@example.test"]["is_admin"] is True
    assert rows["ann@example.test"]["required_actions"] == ["UPDATE_PASSWORD"]
    assert rows["bob@example.test"]["required_actions"] == []
    assert "bob@example.test" in table.stdout


@pytest.mark.parametrize(
    ("words", "stdin", "said"),
    [
        (("users", "create", "nope"), None, "not an e-mail address"),
        (("users", "create", "x@example.test", "--password-stdin"), "\n", "between 8 and 256"),
        (("users", "reset-password", "ghost@example.test"), None, "no user"),
        (("clients", "rotate-secret", "sdk-client"), None, "no confidential client"),
        (("clients", "create", "no spaces"), None, "ASCII letters"),
        (("clients", "create", "api-client"), None, "exists already"),
        (("token", "--url", "http://127.0.0.1:9"), None, "No token endpoint"),
    ],
)
async def test_what_does_not_work_is_said_in_one_line(
    potoroo: Any, words: tuple[str, ...], stdin: str | None, said: str
) -> None:
    answer = await potoroo(*words, stdin=stdin)

    assert answer.exit_code == 1
    assert said in " ".join(answer.stderr.split())
    assert "Traceback" not in answer.output


async def test_clients_are_made_listed_and_given_a_new_secret(potoroo: Any) -> None:
    made = json.loads((await potoroo("clients", "create", "robot", "--json")).stdout)
    rotated = json.loads((await potoroo("clients", "rotate-secret", "robot", "--json")).stdout)
    listed = json.loads((await potoroo("clients", "list", "--json")).stdout)
    lines = (await potoroo("clients", "list")).stdout

    assert made["secret"] != rotated["secret"]
    assert {row["client_id"]: row["confidential"] for row in listed} == {
        "api-client": True,
        "robot": True,
        "sdk-client": False,
    }
    assert "robot\tconfidential" in lines


async def test_a_token_is_asked_for_at_the_server(potoroo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def post(url: str, **sent: Any) -> httpx.Response:
        asked.append({"url": url} | sent)
        return httpx.Response(200, json={"access_token": "abc"})

    monkeypatch.setattr(httpx, "post", post)
    user = await potoroo("token")
    service = await potoroo("token", "--inference", "--json", "--url", "https://ml.example.org/")

    assert (user.stdout, json.loads(service.stdout)) == ("abc\n", {"access_token": "abc"})
    assert asked[0]["url"] == "http://127.0.0.1:8080/auth/realms/master/protocol/openid-connect/token"
    assert asked[0]["data"]["grant_type"] == "password"
    assert asked[1]["url"].startswith("https://ml.example.org/auth/")
    assert asked[1]["data"] == {"grant_type": "client_credentials"}
    assert asked[1]["auth"][0] == "api-client"


async def test_a_database_without_tables_is_said(potoroo: Any, own_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"potoroo_empty_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(db.plain_url(own_url), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        current = connection.info.dbname
    monkeypatch.setenv("POTOROO_DATABASE_URL", own_url.replace(f"/{current}", f"/{name}"))

    answer = await potoroo("users", "list")

    assert answer.exit_code == 1
    assert "potoroo migrate" in answer.stderr


async def test_a_deactivation_in_one_process_ends_tokens_in_another_at_once(processes: list[Context]) -> None:
    here, there = processes
    user_id = await managed_directory_of(here).invite(
        "eve@example.test", "long enough", temporary=False, is_admin=False
    )
    async with here.sessions.begin() as session:
        made = await offline_token(here, session, user_id, base_url="http://potoroo.test")
    token = made.document["access_token"]
    for context in processes:
        assert (await authenticator_of(context).authenticate(token)).id == user_id

    await managed_directory_of(here).change(user_id, Changes(enabled=False))

    with pytest.raises(Unauthenticated):
        await authenticator_of(here).authenticate(token)
    async with asyncio.timeout(2):  # less than what a look-up is trusted for: the word went round
        while True:
            try:
                await authenticator_of(there).authenticate(token)
            except Unauthenticated:
                break
            await asyncio.sleep(0.01)


async def test_two_administrators_cannot_remove_each_other_at_once(processes: list[Context]) -> None:
    here, there = processes
    rows = list(await managed_directory_of(here).admins())
    others = [
        await managed_directory_of(here).invite(f"a{n}@example.test", "long enough", temporary=False, is_admin=True)
        for n in range(2)
    ]
    for one in rows:
        await managed_directory_of(here).change(one.id, Changes(is_admin=False))

    outcomes = await asyncio.gather(
        managed_directory_of(here).change(others[0], Changes(enabled=False)),
        managed_directory_of(there).change(others[1], Changes(enabled=False)),
        return_exceptions=True,
    )

    assert sorted(type(one).__name__ for one in outcomes) == ["Conflict", "NoneType"]
    assert len(await managed_directory_of(here).admins()) == 1


async def test_guesses_made_at_once_do_not_get_more_tries(processes: list[Context]) -> None:
    keys = attempts.keys_of(uuid.uuid4().hex, "203.0.113.7")

    outcomes = await asyncio.gather(
        *(attempts.count(context, keys) for context in processes for _ in range(15)), return_exceptions=True
    )

    refused = [one for one in outcomes if isinstance(one, TooManyRequests)]
    assert len(outcomes) - len(refused) <= attempts.PAIR_LIMIT
    assert all(one is None or isinstance(one, TooManyRequests) for one in outcomes)


async def test_many_right_logins_at_once_all_succeed(processes: list[Context]) -> None:
    await managed_directory_of(processes[0]).invite("ivy@example.test", "long enough", temporary=False, is_admin=False)

    outcomes = await asyncio.gather(
        *(
            check_password(context, "ivy@example.test", "long enough", "203.0.113.8")
            for context in processes
            for _ in range(40)
        ),
        return_exceptions=True,
    )

    assert [one for one in outcomes if isinstance(one, BaseException)] == []
