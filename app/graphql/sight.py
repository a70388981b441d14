"""Which rows a caller sees: every FROM of every statement this module makes is built here.

Whatever selects from a table asks `Sight.rows` for it and gets the table together with the condition that holds for the
rows the caller may see; `app.workspaces.access` decides what that is for a workspace, and everything else follows from
the workspace it lies in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Select, and_, false, literal, or_, select, true

from app.graphql.catalog import Catalog, Entity
from app.identity.caller import Caller
from app.workspaces.access import sees_workspace


@dataclass(frozen=True, slots=True)
class Rows:
    """A table to select from, and what holds for those of its rows that the caller may see."""

    entity: Entity
    source: Any
    """An alias of the table, made for this select alone."""
    condition: ColumnElement[bool]

    def select(self, *columns: Any) -> Select[Any]:
        """Return a select of `columns` from these rows alone: every other table it names belongs to an outer select."""
        return select(*columns).select_from(self.source).where(self.condition).correlate_except(self.source)


class Sight:
    """What one caller sees."""

    def __init__(self, catalog: Catalog, caller: Caller) -> None:
        self.catalog = catalog
        self.caller = caller
        self._used: Counter[str] = Counter()

    def _source(self, name: str) -> Any:
        """Return an alias of the table `name` that nothing else of this request selects from."""
        self._used[name] += 1
        return self.catalog[name].source(self._used[name] - 1)

    def rows(self, name: str) -> Rows:
        """Return the rows of the table `name` that the caller may see."""
        source = self._source(name)
        return Rows(self.catalog[name], source, _RULES[name](self, source))

    def written(self, name: str, keys: list[Any]) -> Rows:
        """Return the rows `keys`, which the caller has just been allowed to write."""
        entity = self.catalog[name]
        source = self._source(name)
        return Rows(entity, source, source.c[entity.key].in_(keys) if keys else false())

    def usable(self, name: str, key: Any) -> Select[Any]:
        """Return a select that tells whether the row `key` may be referred to; it is empty when there is none."""
        entity = self.catalog[name]
        source = self._source(name)
        condition = _RULES[name](self, source)
        if name == "tag":
            condition = or_(condition, source.c.owner_id == self.caller.id)
        return select(condition.label("usable")).select_from(source).where(source.c[entity.key] == key)

    def through(self, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """Return the condition that the row of the table `name` whose key `column` holds is visible."""
        if self.caller.is_admin:
            return true()
        rows = self.rows(name)
        return rows.select(literal(1)).where(rows.source.c[rows.entity.key] == column).exists()

    def linked(self, name: str, link: str, key: ColumnElement[Any]) -> ColumnElement[bool]:
        """Return the condition that a visible row of the table `name` holds `key` in its column `link`."""
        rows = self.rows(name)
        return rows.select(literal(1)).where(rows.source.c[link] == key).exists()


Rule = Callable[[Sight, FromClause], ColumnElement[bool]]


def _in_workspace(column: str) -> Rule:
    def rule(sight: Sight, rows: FromClause) -> ColumnElement[bool]:
        return sees_workspace(sight.caller, rows.c[column])

    return rule


def _below(**parents: str) -> Rule:
    def rule(sight: Sight, rows: FromClause) -> ColumnElement[bool]:
        return and_(*(sight.through(rows.c[column], parent) for column, parent in parents.items()))

    return rule


def _own_default(sight: Sight, rows: FromClause) -> ColumnElement[bool]:
    in_sight = sees_workspace(sight.caller, rows.c.workspace_id)
    return in_sight if sight.caller.is_admin else and_(rows.c.user_id == sight.caller.id, in_sight)


def _tag(sight: Sight, rows: FromClause) -> ColumnElement[bool]:
    return or_(
        sight.linked("model_tag", "tag_id", rows.c.id),
        sight.linked("pipeline_tag", "tag_pk_id", rows.c.id),
    )


def _comment(sight: Sight, rows: FromClause) -> ColumnElement[bool]:
    return or_(
        rows.c.user_id == sight.caller.id,
        sight.linked("model_variant_comment", "comment_id", rows.c.id),
        sight.linked("pipeline_comment", "comment_pk_id", rows.c.id),
    )


_RULES: Mapping[str, Rule] = {
    "workspace": _in_workspace("id"),
    "workspace_users": _in_workspace("workspace_id"),
    "user_default_workspace": _own_default,
    "models": _in_workspace("workspace_id"),
    "model": _below(models_pk_id="models"),
    "model_config": _below(model_id="model"),
    "pipeline": _in_workspace("workspace_id"),
    "pipeline_version": _below(pipeline_pk_id="pipeline"),
    "deployment": _below(pipeline_id="pipeline"),
    # A link is seen by whoever sees both of its ends, so that neither is ever null.
    "deployment_model_configs": _below(deployment_id="deployment", model_config_id="model_config"),
    "deployment_pipeline_version": _below(deployment_id="deployment", pipeline_version_pk_id="pipeline_version"),
    "pipeline_publish": _below(pipeline_version_id="pipeline_version"),
    "tag": _tag,
    "model_tag": _below(model_id="model"),
    "pipeline_tag": _below(pipeline_pk_id="pipeline"),
    "orchestration": _in_workspace("workspace_id"),
    "assay": _below(pipeline_id="pipeline"),
    # Old clients put the pipeline's id there.
    "alert_configuration": _below(pipeline_version_pk_id="pipeline"),
    "comment": _comment,
    "model_variant_comment": _below(model_pk_id="model"),
    "pipeline_comment": _below(pipeline_pk_id="pipeline"),
}
