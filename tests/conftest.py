"""What all tests share: a real Postgres, one database per worker, a transaction per test, clients that are people."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.errors import Unauthenticated
from app.identity import caller as callers
from app.identity import directory as directories
from app.identity.caller import Caller
from app.identity.directory import Person
from app.kit import db, migrate
from app.kit.context import Context
from app.kit.events import Events
from app.kit.postgres import EmbeddedPostgres
from app.kit.storage import open_storage
from app.main import close_parts, create_app
from app.schema import METADATA
from app.settings import Settings
from tests.factories import Make

ADA = Caller("0ada0000-0000-4000-8000-000000000000", "ada@example.test", "ada@example.test", is_admin=True)
ANN = Caller("0a000000-0000-4000-8000-000000000001", "ann@example.test", "ann@example.test")
BOB = Caller("0b000000-0000-4000-8000-000000000002", "bob@example.test", "bob@example.test")
ROBOT = Caller("0c000000-0000-4000-8000-000000000003", "service-account-api-client", None, is_service=True)


@pytest.fixture(scope="session")
def vendor_data() -> Path:
    """The folder of recorded vendor cases; tests that need it skip without it."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("POTOROO_TEST_DATA", beside))
    if not (folder / "README.md").exists():
        pytest.skip("no folder of recorded vendor cases; name it in POTOROO_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[str]:
    """A migrated database of this worker's own."""
    given = os.environ.get("POTOROO_TEST_DATABASE_URL")
    server = None
    if given is None:
        # A short path: a Unix socket's name has room for about a hundred characters.
        folder = Path(tempfile.mkdtemp(prefix="potoroo-pg-"))
        server = EmbeddedPostgres(folder / "pg")
        given = server.start()
    name = f"potoroo_{worker_id}_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(db.plain_url(given), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = given.replace("/potoroo?", f"/{name}?") if "/potoroo?" in given else given.rsplit("/", 1)[0] + f"/{name}"
    migrate.upgrade(url)
    yield url
    if server is not None:
        server.stop()
        shutil.rmtree(folder)
    else:
        with psycopg.connect(db.plain_url(given), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@dataclass
class FakePeople:
    """An authenticator and directory over a handful of made-up people: the token is their username."""

    people: dict[str, Caller] = field(default_factory=lambda: {c.username: c for c in (ADA, ANN, BOB, ROBOT)})

    async def authenticate(self, token: str) -> Caller:
        if token not in self.people:
            raise Unauthenticated("The token is not valid.")
        return self.people[token]

    def _persons(self) -> list[Person]:
        return [Person(c.id, c.username, c.email, True, c.is_admin) for c in self.people.values() if not c.is_service]

    async def by_email(self, email: str) -> Person | None:
        return next((p for p in self._persons() if p.username == email.lower()), None)

    async def by_ids(self, ids: Iterable[str]) -> dict[str, Person]:
        wanted = set(ids)
        return {p.id: p for p in self._persons() if p.id in wanted}

    async def admins(self) -> list[Person]:
        return [p for p in self._persons() if p.is_admin]


@pytest.fixture
async def context(postgres_url: str, tmp_path: Path) -> AsyncIterator[Context]:
    """A process's context whose sessions all live in one transaction, rolled back at the end of the test."""
    settings = Settings(home=tmp_path / "home")
    engine = db.connect(postgres_url, pool=2)
    async with engine.connect() as connection:
        outer = await connection.begin()
        sessions = async_sessionmaker(
            connection, class_=AsyncSession, expire_on_commit=False, join_transaction_mode="create_savepoint"
        )
        people = FakePeople()
        made = Context(
            settings=settings,
            database=engine,
            sessions=sessions,
            events=Events(db.plain_url(postgres_url)),
            storage=open_storage(settings.blobs_url),
            parts={callers.PART: people, directories.PART: people},
        )
        yield made
        await close_parts(made)
        await outer.rollback()
    await engine.dispose()


@pytest.fixture
async def committed(postgres_url: str, tmp_path: Path) -> AsyncIterator[Context]:
    """A context with sessions of their own that really commit, for what happens between transactions.

    All tables are emptied afterwards.
    """
    settings = Settings(home=tmp_path / "home")
    engine = db.connect(postgres_url, pool=5)
    people = FakePeople()
    made = Context(
        settings=settings,
        database=engine,
        sessions=db.sessions_on(engine),
        events=Events(db.plain_url(postgres_url)),
        storage=open_storage(settings.blobs_url),
        parts={callers.PART: people, directories.PART: people},
    )
    yield made
    await close_parts(made)
    async with engine.begin() as connection:
        await connection.execute(
            text("TRUNCATE " + ", ".join(f'"{t.name}"' for t in METADATA.sorted_tables) + " CASCADE")
        )
    await engine.dispose()


@pytest.fixture
async def session(context: Context) -> AsyncIterator[AsyncSession]:
    """A session in the test's transaction, for arranging and looking."""
    async with context.sessions() as opened:
        yield opened


@pytest.fixture
def make(session: AsyncSession) -> Make:
    """Makes rows: say only what the test is about."""
    return Make(session)


@pytest.fixture
async def as_user(context: Context) -> AsyncIterator[Callable[[Caller | None], httpx.AsyncClient]]:
    """Makes HTTP clients that act as somebody, or as nobody."""
    app = create_app(context, roles=())
    made: list[httpx.AsyncClient] = []

    def client(caller: Caller | None) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {caller.username}"} if caller else {}
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        made.append(httpx.AsyncClient(transport=transport, base_url="http://potoroo.test", headers=headers))
        return made[-1]

    yield client
    for opened in made:
        await opened.aclose()


@pytest.fixture
def ada(as_user: Callable[[Caller | None], httpx.AsyncClient]) -> httpx.AsyncClient:
    """Ada, an administrator."""
    return as_user(ADA)


@pytest.fixture
def ann(as_user: Callable[[Caller | None], httpx.AsyncClient]) -> httpx.AsyncClient:
    """Ann, a user."""
    return as_user(ANN)


@pytest.fixture
def bob(as_user: Callable[[Caller | None], httpx.AsyncClient]) -> httpx.AsyncClient:
    """Bob, another user, an outsider to whatever is Ann's."""
    return as_user(BOB)


@pytest.fixture
def nobody(as_user: Callable[[Caller | None], httpx.AsyncClient]) -> httpx.AsyncClient:
    """Somebody without a token."""
    return as_user(None)


@pytest.fixture(autouse=True)
def _no_warnings_from_a_missing_runtime_dir() -> None:
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
