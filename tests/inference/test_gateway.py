"""The gateway: which engine is asked, what passes through, what clients read when nothing answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from app.deployments import observed
from app.deployments.plan import Phase, Replica, ReplicaPhase
from app.deployments.tables import Deployment
from app.inference.routing import Route, RoutingTable, Target, routes_of
from app.inference.upstream import Broken, Pool
from app.kit.context import Context
from tests.conftest import ANN, ROBOT
from tests.factories import Make

Answer = Callable[[bytes, bytes], bytes | None]


class Upstream:
    """A tiny HTTP server: `answer(head, body)` makes the reply, None ends the connection without one."""

    def __init__(self) -> None:
        self.answer: Answer = lambda head, body: reply(body)
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head)
                body = await self._body(head.lower(), reader)
                self.bodies.append(body)
                answer = self.answer(head, body)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @staticmethod
    async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
        if b"content-length: " in head:
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            return await reader.readexactly(length)
        parts = []
        while size := int(await reader.readline(), 16):
            parts.append(await reader.readexactly(size))
            await reader.readline()
        await reader.readline()
        return b"".join(parts)


def reply(body: bytes, status: bytes = b"200 OK", more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (
        status,
        more,
        len(body),
        body,
    )


@pytest.fixture
async def upstream() -> AsyncIterator[Callable[[], Awaitable[Upstream]]]:
    """Starts engines that are not."""
    servers: list[asyncio.Server] = []
    engines: list[Upstream] = []

    async def start() -> Upstream:
        made = Upstream()
        engines.append(made)
        servers.append(await asyncio.start_server(made.serve, "127.0.0.1", 0))
        made.port = servers[-1].sockets[0].getsockname()[1]
        return made

    yield start
    for server in servers:
        server.close()
    for writer in [writer for engine in engines for writer in engine.writers]:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.fixture
def deployed(context: Context, make: Make) -> Callable[..., Awaitable[str]]:
    """Puts a deployment with running engines on ports into the table; returns its inference URL."""

    async def put(*ports: int, **values: Any) -> str:
        pipeline, _ = await make.pipeline(await make.workspace(member=ANN), name="fraud")
        replicas = tuple(
            Replica(name=f"engine-{n}", revision=1, phase=ReplicaPhase.RUNNING, host="127.0.0.1", port=port)
            for n, port in enumerate(ports)
        )
        fields = {"deployed": True, "running_revision": 1, "phase": Phase.RUNNING} | values
        stored = observed.write(observed.Observed(replicas=replicas))
        row = await make.add(Deployment(deploy_id="fraud", pipeline_id=pipeline.id, observed=stored, **fields))
        await routes_of(context).load()
        return f"/v1/api/pipelines/infer/fraud-{row.id}/fraud"

    return put


async def test_request_and_answer_pass_through_as_they_are(
    ann: httpx.AsyncClient, upstream: Any, deployed: Any
) -> None:
    engine = await upstream()
    engine.answer = lambda head, body: reply(
        b'{"error":"no"}', b"400 Bad Request", b"X-Thing: 7\r\nConnection: keep-alive\r\n"
    )
    url = await deployed(engine.port)

    answer = await ann.post(f"{url}?dataset%5B%5D=%2A&x=1", content=b'[{"tensor":[1]}]', headers={"Accept": "a/b"})

    assert (answer.status_code, answer.content, answer.headers["x-thing"]) == (400, b'{"error":"no"}', "7")
    head = engine.heads[0].lower()
    assert head.startswith(f"post {url}?dataset%5b%5d=%2a&x=1 http/1.1".encode())
    assert b"accept: a/b" in head
    assert b"authorization: bearer ann@example.test" in head
    assert engine.bodies == [b'[{"tensor":[1]}]']


async def test_connections_to_engines_are_used_again(ann: httpx.AsyncClient, upstream: Any, deployed: Any) -> None:
    engine = await upstream()
    url = await deployed(engine.port)

    for _ in range(5):
        assert (await ann.post(url, content=b"[]")).status_code == 200

    assert engine.connections == 1


async def test_the_last_part_of_the_path_may_be_missing_and_slashes_doubled(
    ann: httpx.AsyncClient, upstream: Any, deployed: Any
) -> None:
    engine = await upstream()
    url = await deployed(engine.port)

    short = await ann.post(url.removesuffix("/fraud"), content=b"[]")
    doubled = await ann.post(f"http://potoroo.test/{url}", content=b"[]")
    openai = await ann.post(f"{url}/openai/v1/chat/completions", content=b"{}")

    assert (short.status_code, doubled.status_code, openai.status_code) == (200, 200, 200)
    assert [head.split()[1] for head in engine.heads] == [
        url.removesuffix("/fraud").encode(),
        url.encode(),
        f"{url}/openai/v1/chat/completions".encode(),
    ]


async def test_large_bodies_stream_through_both_ways(ann: httpx.AsyncClient, upstream: Any, deployed: Any) -> None:
    engine = await upstream()
    url = await deployed(engine.port)
    large = bytes(range(256)) * 20_000

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(large), 100_000):
            yield large[at : at + 100_000]

    whole = await ann.post(url, content=large)
    chunked = await ann.post(url, content=chunks())

    assert whole.content == chunked.content == large
    assert b"transfer-encoding: chunked" in engine.heads[1]


async def test_an_answer_in_chunks_arrives_whole(ann: httpx.AsyncClient, upstream: Any, deployed: Any) -> None:
    engine = await upstream()
    engine.answer = lambda head, body: (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )
    url = await deployed(engine.port)

    assert (await ann.post(url, content=b"[]")).content == b"abcde"


async def test_another_replica_is_asked_when_one_is_gone(
    ann: httpx.AsyncClient, upstream: Any, deployed: Any, context: Context
) -> None:
    dead, breaks, lives = await upstream(), await upstream(), await upstream()
    breaks.answer = lambda head, body: None
    url = await deployed(1, breaks.port, lives.port)

    answers = [await ann.post(url, content=b"[]") for _ in range(6)]

    assert {a.status_code for a in answers} == {200}
    assert len(breaks.heads) <= 1, "what failed a moment ago is left alone"
    assert len(lives.heads) == 6
    assert dead.heads == []


async def test_when_every_engine_breaks_off_it_is_502(ann: httpx.AsyncClient, upstream: Any, deployed: Any) -> None:
    breaks = await upstream()
    breaks.answer = lambda head, body: None
    url = await deployed(breaks.port)

    answer = await ann.post(url, content=b"[]")

    assert answer.status_code == 502
    assert answer.json() == {
        "code": 502,
        "status": "Error",
        "error": "The engine ended before it answered; send the request again.",
        "source": "engine",
    }


async def test_what_breaks_off_because_it_was_undeployed_is_404(
    ann: httpx.AsyncClient, context: Context, upstream: Any, deployed: Any
) -> None:
    breaks = await upstream()
    breaks.answer = lambda head, body: None
    url = await deployed(breaks.port)
    async with context.sessions() as session:  # the routing table has not heard of it yet
        await session.execute(update(Deployment).values(deployed=False))
        await session.commit()

    assert (await ann.post(url, content=b"[]")).status_code == 404


async def test_what_was_deployed_a_moment_ago_is_found(
    ann: httpx.AsyncClient, context: Context, upstream: Any, deployed: Any
) -> None:
    engine = await upstream()
    url = await deployed(engine.port)
    routes_of(context)._routes = {}  # it has not heard of it yet

    assert (await ann.post(url, content=b"[]")).status_code == 200


async def test_an_engine_that_breaks_off_in_the_middle_is_no_whole_answer(upstream: Any) -> None:
    engine = await upstream()
    engine.answer = lambda head, body: b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"
    link = await Pool().link("127.0.0.1", engine.port)
    await link.send(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n", b"")
    body = (await link.answer()).body()

    assert await anext(body) == b"half"
    engine.writers[0].close()
    with pytest.raises(Broken):
        await anext(body)


async def test_a_deployment_with_nothing_running_is_503_and_says_why(ann: httpx.AsyncClient, deployed: Any) -> None:
    idle = await deployed()
    broken = await deployed(phase=Phase.FAILED, reason="The model is no model.")

    nothing, failed = await ann.post(idle, content=b"[]"), await ann.post(broken, content=b"[]")

    assert (nothing.status_code, nothing.json()["source"]) == (503, "engine")
    assert nothing.headers["retry-after"]
    assert "The model is no model." in failed.json()["error"]


@pytest.mark.parametrize("name", ["fraud-999999", "x", "fraud-", "-", "fraud-" + "9" * 30])
async def test_a_deployment_that_is_not_there_is_404(ann: httpx.AsyncClient, context: Context, name: str) -> None:
    await routes_of(context).load()

    answer = await ann.post(f"/v1/api/pipelines/infer/{name}/p", content=b"[]")

    assert answer.status_code == 404
    assert answer.json() == {
        "code": 404,
        "status": "Error",
        "error": "Deployment not found",
        "source": "platform",
    }


async def test_an_undeployed_one_is_404(ann: httpx.AsyncClient, upstream: Any, deployed: Any) -> None:
    engine = await upstream()
    url = await deployed(engine.port, deployed=False)

    assert (await ann.post(url, content=b"[]")).status_code == 404


async def test_without_a_token_it_is_401_in_either_dialect(nobody: httpx.AsyncClient, deployed: Any) -> None:
    url = await deployed()

    new = await nobody.post(url, content=b"[]")
    old = await nobody.post(url, content=b"[]", headers={"User-Agent": "python-requests/2.25.1"})
    junk = await nobody.post(url, content=b"[]", headers={"Authorization": "Bearer junk"})

    assert (new.status_code, new.json()["error"], new.json()["source"]) == (401, "Jwt is missing", "platform")
    assert new.headers["www-authenticate"] == "Bearer"
    assert old.json() == [{"error_type": "InferenceError", "error": "Jwt is missing"}]
    assert junk.status_code == 401


async def test_a_clients_own_token_may_infer(as_user: Any, upstream: Any, deployed: Any) -> None:
    engine = await upstream()
    url = await deployed(engine.port)

    assert (await as_user(ROBOT).post(url, content=b"[]")).status_code == 200


async def test_before_the_table_is_read_it_is_503_not_404(ann: httpx.AsyncClient) -> None:
    answer = await ann.post("/v1/api/pipelines/infer/fraud-1/fraud", content=b"[]")

    assert answer.status_code == 503


def test_the_replica_with_the_least_to_do_is_chosen_and_one_that_is_down_last() -> None:
    idle, busy, down = (Target(name, "h", n, busy=n) for n, name in enumerate(["idle", "busy", "down"]))
    down.busy, down.down_until = 0, 10.0
    route = Route(1, "d", "p", [down, busy, idle])

    assert route.choose(5.0) is idle
    assert route.choose(5.0, {idle}) is busy
    assert route.choose(5.0, {idle, busy}) is down
    assert route.choose(5.0, {idle, busy, down}) is None
    assert route.choose(11.0, {idle}) is down


async def test_loading_again_keeps_what_is_known_of_replicas(context: Context, deployed: Any) -> None:
    url = await deployed(5, 6)
    table: RoutingTable = routes_of(context)
    route = table.find(url.split("/")[5])
    assert route is not None
    route.targets[0].busy = 3

    await table.load()

    again = table.find(url.split("/")[5])
    assert again is not None
    assert again.targets[0] is route.targets[0]
