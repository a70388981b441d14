"""The JSON that the SDK up to 2024.2 reads of the log with Arrow switched off: a text per row, in the custom form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pyarrow as pa

from engine.contract import codecs, custom_json
from engine.logs.query import Page

CONTENT_TYPE = "application/json"
_OTHER = "out_"
_SPLIT = "_model_split"

LastModel = tuple[str, str]
"""Name and SHA-256 of the model that gave a row's outputs."""


def last_models(table: pa.Table) -> dict[str, LastModel]:
    """Return every model that gave outputs in a page, by the text that its rows have for it."""
    found = {}
    for batch in table.to_batches():
        for text in _metadata(batch, "last_model"):
            if text and text not in found:
                named = msgspec.json.decode(text)
                found[text] = (named.get("model_name", ""), named.get("model_sha", ""))
    return found


def encode(page: Page, pipeline: str, versions: Mapping[LastModel, str]) -> bytes:
    """Write a page of a pipeline's log; `versions` are the versions of models, as far as they are known."""
    models = last_models(page.table)
    texts = [
        msgspec.json.encode(record).decode()
        for batch in page.table.to_batches()
        for record in _records(batch, pipeline, models, versions)
    ]
    return msgspec.json.encode({"records": texts, "status": str(page.status), "next": page.next})


def _records(
    batch: pa.RecordBatch, pipeline: str, models: Mapping[str, LastModel], versions: Mapping[LastModel, str]
) -> Iterator[dict[str, Any]]:
    shown = [name for name in batch.schema.names if name in ("check_failures", "error")]
    rows = zip(
        codecs.to_rows(batch.select(["time", *shown])),
        codecs.to_rows(_struct(batch, "in")),
        _metadata(batch, "last_model"),
        _metadata(batch, "elapsed"),
        strict=True,
    )
    outputs = _struct(batch, "out")
    outputs = outputs.select([name for name in outputs.schema.names if name != _SPLIT])
    others = {name.removeprefix(_OTHER): _struct(batch, name) for name in batch.schema.names if name.startswith(_OTHER)}
    for row, (record, inputs, last_model, elapsed) in enumerate(rows):
        name, sha = models.get(last_model or "", ("", ""))
        yield {
            "check_failures": [],
            "elapsed": elapsed or [],
            "model_name": name,
            "model_version": versions.get((name, sha), ""),
            "original_data": {field: [value] for field, value in inputs.items()},
            "outputs": custom_json.tagged_outputs(outputs.slice(row, 1)),
            "pipeline_name": pipeline,
            "shadow_data": {name: custom_json.tagged_outputs(other.slice(row, 1)) for name, other in others.items()},
            **record,
        }


def _struct(batch: pa.RecordBatch, name: str) -> pa.RecordBatch:
    """Return the children of a column of structs; of one that is not there, none."""
    index = batch.schema.get_field_index(name)
    if index < 0 or not pa.types.is_struct(batch.schema.field(index).type):
        return batch.select([])
    return pa.RecordBatch.from_struct_array(batch.column(index))


def _metadata(batch: pa.RecordBatch, name: str) -> list[Any]:
    metadata = _struct(batch, "metadata")
    index = metadata.schema.get_field_index(name)
    return [None] * batch.num_rows if index < 0 else list(metadata.column(index).to_pylist())
