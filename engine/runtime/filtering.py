"""Honour `filter_threshold`: a detector's finds below it are left out.

The vendor documents the setting only by name. Here it concerns models that give, per row, a list of confidences beside
lists of the same number of other things (boxes, classes); any other model's outputs stay as they are.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from engine.contract import columns as cols
from engine.runtime.models import ModelOutput

_CONFIDENCES = frozenset({"confidence", "confidences", "score", "scores"})


def drop_below(output: ModelOutput, threshold: float) -> ModelOutput:
    """Leave out the finds whose confidence is below the threshold, from every output that has an entry per find."""
    batch = output.batch
    found = [name for name in batch.schema.names if name.lower() in _CONFIDENCES]
    if len(found) != 1 or batch.num_columns < 2:
        return output
    confidences = batch.column(found[0])
    if not cols.is_list(confidences.type) or not cols.is_number(confidences.type.value_type):
        return output
    values, offsets = cols.list_parts(confidences)
    counts = np.diff(offsets)
    kept = cols.numbers(values) >= threshold
    fields, arrays, varying = [], [], set(output.varying)
    for field, column in zip(batch.schema, batch.columns, strict=True):
        width = _width(column, counts)
        if width is None:
            fields.append(field)
            arrays.append(column)
            continue
        elements, _ = cols.list_parts(column)
        mask = cols.numeric_array(np.repeat(kept, width))
        before = np.concatenate(([0], np.cumsum(kept)))
        array = cols.list_array(elements.filter(mask), before[offsets] * width, column.type.value_field)
        fields.append(pa.field(field.name, array.type, nullable=False))
        arrays.append(array)
        varying.add(field.name)
    return ModelOutput(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)), frozenset(varying))


def _width(column: pa.Array, counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> int | None:
    """Return how many elements of the column belong to each find, or None when it is not a list per find."""
    if not cols.is_list(column.type):
        return None
    _, offsets = cols.list_parts(column)
    lengths = np.diff(offsets)
    total = int(counts.sum())
    if not total:
        return 1 if not lengths.any() else None
    width = int(lengths.sum()) // total
    return width if width and (lengths == counts * width).all() else None
