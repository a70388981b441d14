"""Notices: once per change of status, again until they got there, and then no more."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.assays import notifications, scheduler
from app.assays.tables import AssayDelivery
from app.kit.context import Context
from tests.assays.conftest import FixedClock, House
from tests.assays.history import DAY, DAY0, append, config, records
from tests.assays.test_v2_api import assay

API = "/v1/api/assays"


async def call(client: httpx.AsyncClient, path: str, body: Any, status: int = 200) -> Any:
    answer = await client.post(f"{API}/{path}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


class Hook:
    """A webhook that can be told what to answer."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.status = 200
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                hook.got.append(json.loads(body))
                self.send_response(hook.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/drift"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.close()


async def run(context: Context) -> None:
    while await scheduler.tick(context):
        pass
    while await notifications.deliver(context):
        pass


async def test_a_webhook_hears_of_each_change_of_status_once(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context, hook: Hook
) -> None:
    made = (await call(ann, "create", config(house.pipeline)))["assay_id"]
    told = await call(ann, "set_notifications", {"assay_id": made, "webhook": hook.url})

    await run(context)
    await run(context)

    results = await call(ann, "get_results", {"assay_id": made})
    changes = [
        b["status"] for a, b in zip([{"status": "Ok"}, *results], results, strict=False) if a["status"] != b["status"]
    ]
    assert [notice["status"] for notice in hook.got] == changes
    assert changes[-1] == "Alert"
    notice = hook.got[-1]
    assert notice["assay_name"] == "drift of houses"
    assert notice["scores"]["out.variable.0"] >= notice["alert_threshold"] == 0.25
    shown = [r["notifications"] for r in results if r["notifications"]]
    assert [n[0]["state"] for n in shown] == ["delivered"] * len(changes)
    assert (told["webhook"], told["email"], told["deliveries"]) == (hook.url, None, [])


async def test_results_of_the_second_generation_show_their_notices_when_asked_to(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context, hook: Hook
) -> None:
    made = (await ann.post("/v2/api/assays/schedule", json=assay(house))).json()
    await call(ann, "set_notifications", {"assay_id": made, "webhook": hook.url})
    await run(context)

    plain = (await ann.post("/v2/api/assays/get_results", json={"id": made})).json()
    asked = (await ann.post("/v2/api/assays/get_results", json={"id": made, "debug": True})).json()

    assert hook.got[0]["assay_id"] == made
    assert not [r for r in plain if "notifications" in r]  # the vendor's clients would trip over it
    told = [r["status"] for r in asked if r["notifications"]]
    assert told == [notice["status"] for notice in hook.got] == ["Alert"]
    assert {n["state"] for r in asked for n in r["notifications"]} == {"delivered"}


async def test_a_notice_is_tried_again_with_growing_pauses(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context, hook: Hook
) -> None:
    body = config(house.pipeline, warning_threshold=None)
    made = (await call(ann, "create", body))["assay_id"]
    await call(ann, "set_notifications", {"assay_id": made, "webhook": hook.url})
    hook.status = 503

    await run(context)
    pauses = []
    for _ in range(3):
        (waiting,) = (await call(ann, "set_notifications", {"assay_id": made, "webhook": hook.url}))["deliveries"]
        due = notifications.datetime.fromisoformat(waiting["next_attempt"])
        pauses.append((due - clock.moment).total_seconds())
        clock.moment = due
        await notifications.deliver(context)
    hook.status = 204
    clock.moment += timedelta(hours=1)
    await notifications.deliver(context)

    (done,) = (await call(ann, "set_notifications", {"assay_id": made, "webhook": hook.url}))["deliveries"]
    assert pauses == [10, 20, 40]
    assert (done["state"], done["attempts"], done["error"]) == ("delivered", 5, None)
    assert len(hook.got) == 5


async def test_an_address_nobody_answers_at_is_given_up(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    made = (await call(ann, "create", config(house.pipeline, warning_threshold=None)))["assay_id"]
    await call(ann, "set_notifications", {"assay_id": made, "webhook": url})

    await run(context)
    for _ in range(20):
        clock.moment += timedelta(hours=3)
        await notifications.deliver(context)

    (lost,) = (await call(ann, "set_notifications", {"assay_id": made}))["deliveries"]
    assert (lost["state"], lost["attempts"]) == ("given up", notifications.MOST_ATTEMPTS)
    assert "ConnectError" in lost["error"]


async def test_a_window_that_fails_is_a_change_too_and_so_is_recovery(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context, hook: Hook
) -> None:
    broken = [(DAY0 + 3 * DAY + timedelta(minutes=i), "broken") for i in range(5)]
    append(house.root, house.topic, records(broken), partition="engine-2")
    made = (await call(ann, "create", config(house.pipeline, warning_threshold=None, alert_threshold=1e6)))["assay_id"]
    await call(ann, "set_notifications", {"assay_id": made, "webhook": hook.url})

    await run(context)

    assert [(n["previous_status"], n["status"]) for n in hook.got] == [("Ok", "Failed"), ("Failed", "Ok")]
    assert "not numbers" in hook.got[0]["reason"]


async def test_a_mail_is_sent_through_the_mail_server_of_the_settings(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context, session: AsyncSession
) -> None:
    mails: list[str] = []

    async def smtp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 test\r\n")
        while line := (await reader.readline()).decode().strip():
            word = line.split()[0].upper()
            if word == "DATA":
                writer.write(b"354 go\r\n")
                lines = []
                while (part := (await reader.readline()).decode().rstrip("\r\n")) != ".":
                    lines.append(part)
                mails.append("\n".join(lines))
            writer.write(b"221 bye\r\n" if word == "QUIT" else b"250 ok\r\n")
            if word == "QUIT":
                break
        writer.close()

    server = await asyncio.start_server(smtp, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    made = (await call(ann, "create", config(house.pipeline, name="drift\nof houses", warning_threshold=None)))[
        "assay_id"
    ]
    await call(ann, "set_notifications", {"assay_id": made, "email": "oncall@example.test"})

    await run(context)  # no mail server is set yet
    (waiting,) = await session.scalars(select(AssayDelivery))
    context.settings.smtp_url = SecretStr(f"smtp://127.0.0.1:{port}")
    clock.moment += timedelta(minutes=1)
    await notifications.deliver(context)
    server.close()
    await server.wait_closed()

    assert "POTOROO_SMTP_URL" in (waiting.error or "")
    (mail,) = mails
    assert "Subject: [Alert] assay drift of houses" in mail
    assert "To: oncall@example.test" in mail
    assert "status: Alert" in mail


@pytest.mark.parametrize(
    "bad",
    [{"webhook": "ftp://example.org"}, {"webhook": "nonsense"}, {"email": "nobody"}, {"email": "a@b\r\nBcc: c@d"}],
)
async def test_an_address_that_cannot_be_one_is_refused(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, bad: dict[str, str]
) -> None:
    made = (await call(ann, "create", config(house.pipeline)))["assay_id"]

    answer = await call(ann, "set_notifications", {"assay_id": made} | bad, status=400)

    assert "address" in answer["msg"] or "URL" in answer["msg"]
