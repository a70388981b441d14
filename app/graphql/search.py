"""The search functions: which rows hold a term, in any case of letters, anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Select, Text, cast, func, literal, or_, select, true
from sqlalchemy.dialects.postgresql import ARRAY, JSONPATH

from app.graphql.errors import DATA, Fault
from app.graphql.sight import Sight
from app.pipelines.tables import ModelTag, PipelineTag, Tag

Search = Callable[[Sight, FromClause, str], ColumnElement[bool]]


def _holds(column: Any, term: str) -> ColumnElement[bool]:
    return cast(column, Text()).icontains(term, autoescape=True)


def _models(_: Sight, rows: FromClause, term: str) -> ColumnElement[bool]:
    """Look at names, versions, hashes, file names and tags."""
    if not _is_given(term):
        return true()
    columns = ("model_id", "model_version", "sha", "file_name")
    tagged = rows.c.id.in_(_tagged(ModelTag.model_id, ModelTag.tag_id, term))
    return or_(*(_holds(rows.c[column], term) for column in columns), tagged)


def _pipelines(sight: Sight, rows: FromClause, term: str) -> ColumnElement[bool]:
    """Look at the names of pipelines and of the models in their steps, and at tags."""
    if not _is_given(term):
        return true()
    pipelines = sight.rows("pipeline")
    named = pipelines.select(pipelines.source.c.id).where(_holds(pipelines.source.c.pipeline_id, term))
    tagged = _tagged(PipelineTag.pipeline_pk_id, PipelineTag.tag_pk_id, term)
    key = rows.c.pipeline_pk_id
    return or_(key.in_(named), key.in_(tagged), *(_names_model(rows, path, term) for path in _MODEL_NAMES))


def _tagged(owner: Any, tag: Any, term: str) -> Select[Any]:
    """Return the select of what bears a tag that holds `term`.

    Whoever sees the bearer sees its tags, and the rows searched are the visible ones: no further condition is needed.
    """
    return select(owner).join(Tag, Tag.id == tag).where(_holds(Tag.tag, term)).correlate(None)


_MODEL_NAMES = ("$.steps[*].**.name", "$.steps[*].**.model_id")
"""Where a definition names its models: single ones, shadows and splits alike."""


def _names_model(rows: FromClause, path: str, term: str) -> ColumnElement[bool]:
    found = func.jsonb_path_query(rows.c.definition, cast(literal(path, Text()), JSONPATH())).column_valued()
    name = found.op("#>>")(literal([], ARRAY(Text())))
    return select(literal(1)).where(_holds(name, term)).correlate(rows).exists()


def _is_given(term: str) -> bool:
    if "\0" in term:
        raise Fault("Text cannot hold the character U+0000.", DATA)
    return term != ""


SEARCHES: Mapping[str, Search] = {"search_models": _models, "search_pipelines": _pipelines}
