"""Passes inference requests on to engines, and their answers back, without keeping either."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from app.errors import AppError, Unavailable
from app.inference.errors import BadGateway, GatewayTimeout, not_found
from app.inference.routing import Route, RoutingTable, Target, routes_of
from app.inference.upstream import Answer, Broken, Link, Pool, Unreachable
from app.kit.context import Context
from app.kit.http import request_id_of

PART = "gateway"
"""Under this name `Context.parts` holds the process's `Gateway`."""

REPLAYED_BYTES = 1024 * 1024
"""A body no larger than this is kept until the answer begins, so that another replica can be asked."""
GAP_S = 0.5
"""How long a request waits for a replica to appear while a deployment has none."""
_OWN = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"host", b"expect", b"upgrade", b"te",
     b"trailer", b"proxy-connection", b"x-request-id"}
)  # fmt: skip


class Gateway:
    """Answers inference requests by asking engines."""

    def __init__(self, table: RoutingTable) -> None:
        self._table = table
        self._pool = Pool()
        table.on_change(self._forget_gone)

    async def infer(self, request: Request, deployment: str) -> Response:
        """Return an engine's answer to `request`.

        Raises `NotFound` when the deployment is not on, `Unavailable` when none of its engines runs, `BadGateway` or
        `GatewayTimeout` when one broke off or fell silent.
        """
        route = self._table.find(deployment)
        if route is None:
            if not self._table.is_loaded:
                raise Unavailable("The server is starting; try again in a moment.")
            # It may have been deployed so short a time ago that the table has not heard of it.
            if await self._table.is_gone(deployment) or (route := self._table.find(deployment)) is None:
                raise not_found()
        head, body = await _outgoing(request)
        answer, target = await self._ask(deployment, route, head, body)
        headers = [(n.lower(), v) for n, v in answer.headers if n.lower() not in _OWN or n.lower() == b"content-length"]
        response = StreamingResponse(_counted(answer, target), answer.status)
        response.raw_headers = headers
        return response

    async def _ask(
        self, deployment: str, route: Route, head: bytes, body: bytes | AsyncIterator[bytes]
    ) -> tuple[Answer, Target]:
        """Ask one replica after another until one answers; only what nobody began to answer is asked again."""
        loop = asyncio.get_running_loop()
        tried: set[Target] = set()
        deadline = loop.time() + GAP_S
        failure = ""
        while True:
            target = route.choose(loop.time(), tried)
            if target is None:
                if loop.time() >= deadline:
                    break
                await asyncio.sleep(0.05)  # a replica may be on its way up
                route = self._table.find(deployment) or route
                continue
            target.busy += 1
            try:
                return await self._exchange(target, head, body), target
            except Unreachable as exc:
                failure = str(exc)
            except Broken as exc:
                failure = str(exc)
                if not isinstance(body, bytes):
                    target.busy -= 1
                    self._table.mark_down(target)
                    raise await self._broken_off(deployment, failure) from exc
            except TimeoutError as exc:
                target.busy -= 1
                raise GatewayTimeout("The engine did not answer in time.") from exc
            except BaseException:
                target.busy -= 1
                raise
            target.busy -= 1
            tried.add(target)
            self._table.mark_down(target)
        if failure and tried:
            raise await self._broken_off(deployment, failure)
        why = f": {route.reason}" if route.reason else "; it is starting, or scaled to none."
        raise Unavailable(f"The resources required to run this request are not available{why}")

    async def _broken_off(self, deployment: str, cause: str) -> AppError:
        """Return the error for a request whose engine ended: the deployment may have been undeployed meanwhile."""
        if await self._table.is_gone(deployment):
            return not_found()
        return BadGateway("The engine ended before it answered; send the request again.", cause=cause)

    async def _exchange(self, target: Target, head: bytes, body: bytes | AsyncIterator[bytes]) -> Answer:
        link = await self._pool.link(target.host, target.port)
        try:
            return await _exchange(link, head, body)
        except Broken:
            if link.is_fresh or not isinstance(body, bytes):
                raise
        # A kept connection may have been closed by the engine at the very moment we wrote to it.
        return await _exchange(await self._pool.link(target.host, target.port, fresh=True), head, body)

    async def aclose(self) -> None:
        """Close the connections to engines."""
        await self._pool.aclose()

    def _forget_gone(self) -> None:
        self._pool.forget((t.host, t.port) for t in self._table.targets())


async def _exchange(link: Link, head: bytes, body: bytes | AsyncIterator[bytes]) -> Answer:
    try:
        sending = asyncio.ensure_future(link.send(head, body))
        try:
            answer = await _first_answer(link, sending)
        finally:
            if not sending.done():
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
    except BaseException:
        link.close()
        raise
    return answer


async def _first_answer(link: Link, sending: asyncio.Future[None]) -> Answer:
    """Return the answer, which may come before the whole body was sent: a refusal need not wait for it."""
    answering = asyncio.ensure_future(link.answer())
    try:
        both: set[asyncio.Future[Any]] = {sending, answering}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if sending.done() and not answering.done():
            error = sending.exception()
            if error is not None and not isinstance(error, ConnectionError):
                raise error
        return await answering
    finally:
        if not answering.done():
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
        if sending.done() and not sending.cancelled():
            sending.exception()  # a broken pipe: the answer tells more


async def _counted(answer: Answer, target: Target) -> AsyncIterator[bytes]:
    try:
        async for part in answer.body():
            yield part
    finally:
        target.busy -= 1


async def _outgoing(request: Request) -> tuple[bytes, bytes | AsyncIterator[bytes]]:
    """Return the head to send on, and the body: whole if it is small, else as it comes."""
    path = request.url.path.encode("utf-8")
    raw: bytes = request.scope.get("raw_path") or path
    target = raw if b"//" not in raw else path
    query: bytes = request.scope["query_string"]
    lines = [b"%b %b%b HTTP/1.1" % (request.method.encode(), target, b"?" + query if query else b"")]
    lines.append(b"host: %b" % request.headers.get("host", "engine").encode("latin-1"))
    lines.append(b"x-request-id: %b" % request_id_of(request).encode("latin-1"))
    lines += [b"%b: %b" % (n, v) for n, v in request.headers.raw if n not in _OWN]
    length = request.headers.get("content-length")
    body: bytes | AsyncIterator[bytes]
    if length is not None and int(length) > REPLAYED_BYTES:
        lines.append(b"content-length: %b" % length.encode())
        body = request.stream()
    elif length is not None or "transfer-encoding" not in request.headers:
        body = await request.body()
        lines.append(b"content-length: %d" % len(body))
    else:
        lines.append(b"transfer-encoding: chunked")
        body = request.stream()
    return b"\r\n".join(lines) + b"\r\n\r\n", body


def gateway_of(context: Context) -> Gateway:
    """Return the process's gateway."""
    gateway: Gateway | None = context.parts.get(PART)
    if gateway is None:
        gateway = context.parts[PART] = Gateway(routes_of(context))
    return gateway


async def close_parts(context: Context) -> None:
    """Close the process's gateway, if it was ever asked for."""
    gateway: Gateway | None = context.parts.get(PART)
    if gateway is not None:
        await gateway.aclose()
