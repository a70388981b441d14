"""Which format a request is in, and which its reply is wanted in."""

from __future__ import annotations

import enum
from typing import Any

import msgspec
import pyarrow as pa

from engine.contract import arrow_files, codecs, custom_json
from engine.contract.codecs import Columns
from engine.contract.failures import InferenceFailure
from engine.runtime.pipeline import Pipeline

ARROW_TYPE = "application/vnd.apache.arrow.file"
RECORDS_TYPE = "application/json; format=pandas-records"
CUSTOM_TYPE = "application/json; format=wallaroo"
JSON_TYPE = "application/json"


class Format(enum.StrEnum):
    """How rows are written."""

    RECORDS = "pandas-records"
    ARROW = "arrow"
    CUSTOM = "wallaroo"
    JSON = "json"
    """JSON that does not say of which form; its value decides."""


class Decoded(msgspec.Struct, frozen=True):
    """A request's rows."""

    batch: pa.RecordBatch
    format: Format
    original: Any = None
    """The JSON value itself, for the custom form, which repeats it."""


def request_format(content_type: str | None, body: bytes | bytearray | memoryview) -> Format:
    """Say what the body is; raises `InferenceFailure` (415) for a type that no model reads."""
    kind, _, parameters = (content_type or "").partition(";")
    kind = kind.strip().lower()
    if kind == ARROW_TYPE:
        return Format.ARROW
    if kind in ("", "*/*", "application/octet-stream", "application/x-www-form-urlencoded"):
        return Format.ARROW if bytes(body[:6]) == arrow_files.MAGIC else Format.JSON
    if kind == JSON_TYPE or kind.endswith("+json") or kind == "text/plain":
        wanted = _parameter(parameters, "format")
        if wanted in ("", Format.RECORDS, Format.CUSTOM):
            return Format(wanted or Format.JSON)
    raise InferenceFailure(
        f"Content-Type {content_type!r} is not understood; send {RECORDS_TYPE}, {JSON_TYPE} or {ARROW_TYPE}.",
        status=415,
    )


def reply_format(accept: str | None, request: Format) -> Format:
    """Choose the format of the reply: Arrow and custom JSON when asked for, else records."""
    ranges = sorted((_media_range(text) for text in (accept or "").split(",")), key=lambda entry: -entry[0])
    for quality, kind, parameters in ranges:
        if quality <= 0:
            continue
        if kind == ARROW_TYPE:
            return Format.ARROW
        if kind == JSON_TYPE:
            wanted = _parameter(parameters, "format")
            if wanted == Format.CUSTOM or (not wanted and request is Format.CUSTOM):
                return Format.CUSTOM
            return Format.RECORDS
    return Format.RECORDS


def _media_range(text: str) -> tuple[float, str, str]:
    kind, _, parameters = text.partition(";")
    try:
        quality = float(_parameter(parameters, "q") or 1)
    except ValueError:
        quality = 1.0
    return quality, kind.strip().lower(), parameters


def _parameter(parameters: str, name: str) -> str:
    for parameter in parameters.split(";"):
        key, _, value = parameter.partition("=")
        if key.strip().lower() == name:
            return value.strip().strip('"').lower()
    return ""


def decode(content_type: str | None, body: bytes | bytearray | memoryview, pipeline: Pipeline) -> Decoded:
    """Return a request's rows as one record batch; raises `InferenceFailure` saying what is wrong with it."""
    form = request_format(content_type, body)
    if form is Format.ARROW:
        return Decoded(arrow_files.decode_file(body), form)
    value = codecs.parse_json(body)
    if form is Format.JSON:
        is_custom = isinstance(value, dict) or (isinstance(value, list) and value and not isinstance(value[0], dict))
        form = Format.CUSTOM if is_custom else Format.RECORDS
    elif form is Format.CUSTOM and isinstance(value, list) and value and isinstance(value[0], dict):
        form = Format.RECORDS
    if form is Format.CUSTOM:
        columns, rows = custom_json.read_arrays(value)
        if isinstance(value, list):
            columns = _named(columns, pipeline)
        return Decoded(codecs.to_batch(columns, rows, pipeline.hints(list(columns))), form, value)
    columns, rows = codecs.read_records(value)
    return Decoded(codecs.to_batch(columns, rows, pipeline.hints(list(columns))), form)


def _named(columns: Columns, pipeline: Pipeline) -> Columns:
    """Give a bare list the name of the field that the first model reads."""
    model = pipeline.first_model
    fields = (model.document.config.tensor_fields or [spec.name for spec in model.inputs]) if model else []
    return {fields[0]: columns["tensor"]} if len(fields) == 1 else columns
