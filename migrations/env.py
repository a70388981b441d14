"""Alembic's environment: runs on a connection that is handed in, or on POTOROO_DATABASE_URL."""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import Connection, create_engine

from app.kit.db import sync_url
from app.schema import METADATA


def run(connection: Connection) -> None:
    """Run the migrations in one transaction."""
    context.configure(connection=connection, target_metadata=METADATA, compare_type=True, compare_server_default=False)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with create_engine(sync_url(os.environ["POTOROO_DATABASE_URL"])).connect() as own:
        run(own)
