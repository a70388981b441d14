"""Answers requests: one statement for a query, one transaction for a mutation."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.graphql.catalog import Catalog, make_catalog
from app.graphql.documents import Document, Documents
from app.graphql.errors import Fault, of_database
from app.graphql.introspection import Answer, Introspection
from app.graphql.mutations import Mutator
from app.graphql.schema import make_schema
from app.graphql.select import Selector
from app.graphql.selections import INTROSPECTION, Field, Selections, is_mutation, read_variables
from app.graphql.sight import Sight
from app.identity.caller import Caller

log = structlog.get_logger()

TIME_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks."""

    query: str
    variables: dict[str, Any]
    operation: str | None


class Endpoint:
    """The schema of this release and what is kept about it; one for the process."""

    def __init__(self) -> None:
        self.catalog: Catalog = make_catalog()
        self.schema = make_schema(self.catalog)
        self.documents = Documents(self.schema)
        self.introspection = Introspection(self.schema)

    async def answer(
        self, sessions: async_sessionmaker[AsyncSession], caller: Caller, request: Request
    ) -> bytes | Answer:
        """Return the answer's bytes, compressed ones beside them for introspection; raises `Fault`."""
        if not request.variables and (kept := self.introspection.kept(request.query, request.operation)):
            return kept
        document = self.documents.read(request.query)
        operation = document.operation(request.operation)
        variables = read_variables(self.schema, document, operation, request.variables)
        fields = Selections(self.schema, document, variables).root(operation)
        if fields and all(f.name in INTROSPECTION for f in fields):
            return await self._introspect(document, request, fields)
        try:
            async with asyncio.timeout(TIME_LIMIT_S), sessions.begin() as session:
                sight = Sight(self.catalog, caller)
                if is_mutation(operation):
                    mutator = Mutator(session, sight)
                    parts = [f"{json.dumps(f.key)}:{await mutator.run(f)}" for f in fields]
                    return f'{{"data":{{{",".join(parts)}}}}}'.encode()
                text = str(await session.scalar(Selector(sight).query(fields)))
        except TimeoutError as exc:
            raise Fault("The query took too long and was stopped; ask for less at once.", "postgres-error") from exc
        except DBAPIError as exc:
            if fault := of_database(exc):
                place = f"{fields[0].path}.args" if len(fields) == 1 else "$"
                raise fault.at(place) from exc
            raise
        if any(f.name in INTROSPECTION for f in fields):
            text = await self._mixed(document, request, fields, text)
        return f'{{"data":{text}}}'.encode()

    async def _introspect(self, document: Document, request: Request, fields: list[Field]) -> bytes | Answer:
        operation = document.operation(request.operation)
        parts = await asyncio.to_thread(self.introspection.parts, document, operation, fields, request.variables)
        inner = b",".join(json.dumps(f.key).encode() + b":" + parts[f.key] for f in fields)
        plain = b'{"data":{' + inner + b"}}"
        return plain if request.variables else self.introspection.keep(request.query, request.operation, plain)

    async def _mixed(self, document: Document, request: Request, fields: list[Field], text: str) -> str:
        """Return the answer of tables with the schema's own words about itself put in."""
        operation = document.operation(request.operation)
        parts = await asyncio.to_thread(self.introspection.parts, document, operation, fields, request.variables)
        tables: dict[str, Any] = json.loads(text)
        tables |= {key: json.loads(part) for key, part in parts.items()}
        return json.dumps({f.key: tables[f.key] for f in fields})
