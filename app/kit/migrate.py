"""Brings a database to the schema of this release."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text

from app.kit.db import sync_url

_LOCK = "SELECT pg_advisory_lock(hashtextextended('potoroo.migrate', 0))"
_UNLOCK = "SELECT pg_advisory_unlock(hashtextextended('potoroo.migrate', 0))"
_TRIGGERS = """
DO $$
DECLARE t record;
BEGIN
  FOR t IN
    SELECT c.table_name FROM information_schema.columns c
    JOIN information_schema.tables b USING (table_schema, table_name)
    WHERE c.table_schema = current_schema() AND c.column_name = 'updated_at' AND b.table_type = 'BASE TABLE'
  LOOP
    EXECUTE format('CREATE OR REPLACE TRIGGER set_updated_at BEFORE UPDATE ON %I FOR EACH ROW '
                   'EXECUTE FUNCTION set_updated_at()', t.table_name);
  END LOOP;
END $$
"""


def config(connection: Connection | None = None) -> Config:
    """Return Alembic's configuration, on `connection` when one is given."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parents[2] / "migrations"))
    made.attributes["connection"] = connection
    return made


def upgrade(url: str, revision: str = "head") -> tuple[str | None, str | None]:
    """Migrate the database at `url`; one process at a time, others wait. Returns the revisions before and after.

    Every table that has `updated_at` gets the trigger that keeps it.
    """
    engine = create_engine(sync_url(url))
    try:
        with engine.connect() as connection:
            connection.execute(text(_LOCK))
            connection.commit()
            try:
                before = MigrationContext.configure(connection).get_current_revision()
                connection.commit()
                command.upgrade(config(connection), revision)
                connection.commit()
                connection.execute(text(_TRIGGERS))
                connection.commit()
                after = MigrationContext.configure(connection).get_current_revision()
            finally:
                connection.rollback()
                connection.execute(text(_UNLOCK))
                connection.commit()
    finally:
        engine.dispose()
    return before, after


def head() -> str | None:
    """Return the newest revision this release knows."""
    return ScriptDirectory.from_config(config()).get_current_head()
