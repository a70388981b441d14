"""Run the steps of a pipeline over one request."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa

from engine.contract import columns as cols
from engine.contract import definitions as steps
from engine.contract.codecs import LeafKind
from engine.contract.definitions import Definition, ModelReference
from engine.contract.deployment import PipelineDocument
from engine.contract.failures import BadInput, InferenceFailure
from engine.contract.records import TENSOR_TYPE, tensor_metadata
from engine.runtime.checks import failed_checks
from engine.runtime.models import LoadError, Model, ModelOutput
from engine.runtime.reshaping import average, cast_numbers, columns_to_rows, fold_rows, select_columns
from engine.runtime.tensors import zero_numbers

Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]

SPLIT_FIELD = "_model_split"


class Ran(msgspec.Struct, frozen=True):
    """A model that ran, what it was given and what it gave."""

    model: Model
    input: pa.RecordBatch
    output: ModelOutput
    from_step: bool


class Answer(msgspec.Struct):
    """What the steps made of a request; the record is built of it."""

    output: pa.RecordBatch
    others: list[tuple[str, pa.RecordBatch]] = []
    """`out_<model>` datasets that the reply shows."""
    audited: list[tuple[str, pa.RecordBatch]] = []
    """`out_<model>` datasets that only the log keeps."""
    check_failures: list[list[str]] | None = None
    """Per row the text of each older check that did not hold; None when there is no such check."""
    anomalies: list[tuple[str, Flags]] = []
    """Each newer check with the rows for which it is true."""
    last_model: Model | None = None
    """The model that gave `output`."""
    varying: frozenset[str] = frozenset()
    """Fields of `out` whose row shape differs from request to request."""


class Pipeline:
    """A pipeline version with its models loaded; any number of threads may run it."""

    def __init__(
        self,
        document: PipelineDocument,
        definition: Definition,
        models: Mapping[ModelReference, Model],
        split_record: Literal["short", "full"] = "full",
        draw: random.Random | None = None,
    ) -> None:
        self.document = document
        self.definition = definition
        self.models = models
        self.observe_step: Callable[[int, int], None] | None = None
        """Told of each step that ran: its position, and how long it took in nanoseconds."""
        self._split_record = split_record
        self._random = draw or random.Random()
        missing = [reference for reference in definition.models if reference not in models]
        if missing:
            names = ", ".join(f"{reference.name} {reference.version}" for reference in missing)
            raise LoadError(f"Pipeline {document.id!r} names models that this deployment does not have: {names}.")

    @property
    def first_model(self) -> Model | None:
        """The model that reads the request, when no other step changes the columns before it."""
        for step in self.definition.steps:
            references = steps.step_models(step)
            if references and not isinstance(step, steps.RowsToModels):
                return self.models[references[0]]
            if not isinstance(step, steps.TreeCheck | steps.ExpressionCheck):
                return None
        return None

    def hints(self, names: list[str]) -> dict[str, LeafKind]:
        """Say what the fields of a JSON request are wanted for; unknown where no model reads them directly."""
        model = self.first_model
        if model is None:
            return {}
        try:
            columns = model.columns(names, from_step=False)
        except BadInput:
            return {}  # `run` says the same again, with the rows at hand.
        return {name: spec.kind for name, spec in zip(columns, model.inputs, strict=True)}

    def annotated(self, request: pa.RecordBatch) -> pa.RecordBatch:
        """Return the request with `tensor_type` metadata on its fields, where the model or the type fixes the shape."""
        shapes = self._input_shapes(request.schema.names)
        fields = []
        for field in request.schema:
            shape = shapes.get(field.name) if cols.is_list(field.type) else ()
            known = field.metadata or {}
            is_missing = shape is not None and TENSOR_TYPE not in known and not pa.types.is_struct(field.type)
            fields.append(field.with_metadata({**known, **tensor_metadata(shape or ())}) if is_missing else field)
        return pa.RecordBatch.from_arrays(request.columns, schema=pa.schema(fields)) if fields else request

    def _input_shapes(self, names: list[str]) -> dict[str, tuple[int, ...] | None]:
        model = self.first_model
        if model is None or not names:
            return {}
        try:
            columns = model.columns(names, from_step=False)
        except BadInput:
            return {}  # Only a request without rows comes here; there was nothing to refuse.
        return {name: spec.row_shape for name, spec in zip(columns, model.inputs, strict=True)}

    def zeroes(self) -> pa.RecordBatch | None:
        """Return one row of zeroes for the first model, or None where its fields or their shapes are not known."""
        model = self.first_model
        if model is None or not model.inputs:
            return None
        fields, arrays = [], []
        for name, spec in zip(model.columns(model.usual_fields, from_step=False), model.inputs, strict=True):
            if spec.row_shape is None:
                return None
            size = math.prod(spec.row_shape)
            values = cols.string_array([""] * size) if spec.kind == "string" else zero_numbers(size, spec)
            lists = cols.equal_lists(values, 1, pa.field("item", values.type))
            arrays.append(lists)
            fields.append(pa.field(name, lists.type))
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    def run(self, request: pa.RecordBatch) -> Answer:
        """Run every step; raises `InferenceFailure`."""
        return _Run(self, request).finish()

    def split_text(self, model: Model) -> str:
        """Return the JSON text by which `_model_split` names a model."""
        document = model.document
        if self._split_record == "full" and document.record:
            return msgspec.json.encode(document.record).decode()
        return msgspec.json.encode({"name": document.name, "version": document.version, "sha": document.sha}).decode()

    def draw(self) -> float:
        """Return a random number from 0 to 1, 1 excluded."""
        return self._random.random()


class _Run:
    """The state of one request on its way through the steps."""

    def __init__(self, pipeline: Pipeline, request: pa.RecordBatch) -> None:
        self.pipeline = pipeline
        self.request = request
        self.current = ModelOutput(request)
        self.many: list[Ran] = []
        """Outputs of the last model step, in order; `current` is the first of them."""
        self.ran: list[Ran] = []
        self.splits: list[Model] = []
        self.fan = 1
        """Rows that stand for one row of the request (after ColumnsToRows)."""
        self.answer = Answer(request)

    def finish(self) -> Answer:
        observe = self.pipeline.observe_step
        for position, step in enumerate(self.pipeline.definition.steps):
            started = time.perf_counter_ns()
            _STEPS[type(step)](self, step)
            if observe is not None:
                observe(position, time.perf_counter_ns() - started)
        answer, output = self.answer, self.current.batch
        if self.fan > 1:
            output = fold_rows(output, self.request.num_rows)
        if output.num_rows != self.request.num_rows:
            raise InferenceFailure(
                f"The pipeline gives {output.num_rows} rows for {self.request.num_rows} rows of input.", status=400
            )
        if self.splits:
            output = self._with_split(output)
        answer.output, answer.varying = output, self.current.varying
        answer.last_model = self.many[0].model if self.many else self.ran[-1].model if self.ran else None
        return answer

    def infer(self, model: Model, batch: pa.RecordBatch) -> Ran:
        from_step = bool(self.ran) or batch is not self.request
        ran = Ran(model, batch, model.run(batch, from_step=from_step), from_step)
        self.ran.append(ran)
        return ran

    def model_inference(self, step: steps.ModelInference) -> None:
        batch = self.current.batch
        self.many = [self.infer(self.pipeline.models[reference], batch) for reference in step.models]
        self.current = self.many[0].output

    def run_one(self, model: Model) -> None:
        self.many = [self.infer(model, self.current.batch)]
        self.current = self.many[0].output

    def audit_results(self, step: steps.AuditResults) -> None:
        for ran in self.many[step.start : step.stop]:
            _put(self.answer.audited, ran)

    def multi_out(self, _: steps.MultiOut) -> None:
        for ran in self.many[1:]:
            _put(self.answer.others, ran)
        self.keep(self.many[0])

    def nth(self, step: steps.Nth) -> None:
        self.keep(self.many[step.index])

    def keep(self, ran: Ran) -> None:
        self.many, self.current = [ran], ran.output

    def average(self, _: steps.Average) -> None:
        mean = average([(ran.model.document.name, ran.output.batch) for ran in self.many])
        self.current = ModelOutput(mean, self.many[0].output.varying)
        self.many = self.many[:1]

    def meta_value_split(self, step: steps.MetaValueSplit) -> None:
        reference = step.control
        for text in self.first_value_texts(step.split_key):
            if text in step.routes:
                reference = step.routes[text]
                break
        self.split_to(reference)

    def random_split(self, step: steps.RandomSplit) -> None:
        point = self.pipeline.draw() if step.hash_key is None else self.hash_point(step.hash_key)
        total = sum(weight for _, weight in step.weights)
        chosen, reached = step.weights[0][0], 0.0
        for reference, weight in step.weights:
            if weight == 0:
                continue
            chosen = reference
            reached += weight / total
            if point < reached:
                break
        self.split_to(chosen)

    def split_to(self, reference: ModelReference) -> None:
        model = self.pipeline.models[reference]
        self.splits.append(model)
        self.run_one(model)

    def first_value(self, name: str) -> Any:
        """Return the first row's value of a request field; a list of one is that one."""
        if not self.request.num_rows:
            return None
        value = cols.to_python(self.request.column(name).slice(0, 1))[0]
        while isinstance(value, list) and len(value) == 1:
            value = value[0]
        return value

    def first_value_texts(self, name: str) -> Sequence[str]:
        """Return how the first row's value of a request field may be written as a text."""
        if self.request.schema.get_field_index(name) < 0:
            return ()
        value = self.first_value(name)
        if isinstance(value, bool):
            return str(value).lower(), str(value)
        if isinstance(value, float) and value.is_integer():
            return str(value), str(int(value))
        return (str(value),) if isinstance(value, str | int | float) else ()

    def hash_point(self, name: str) -> float:
        if not self.request.num_rows:
            return 0.0
        if self.request.schema.get_field_index(name) < 0:
            raise BadInput(
                "the pipeline chooses the model by this field (a number from 0 to 1); it is missing", field=name
            )
        value = self.first_value(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise BadInput(f"expected a number from 0 to 1 to choose the model by, got {value!r}", field=name, row=0)
        return float(value)

    def tree_check(self, step: steps.TreeCheck) -> None:
        rows = self.request.num_rows
        failures = self.answer.check_failures or [[] for _ in range(rows)]
        if rows:
            for validation in step.validations:
                for row in failed_checks(validation, self.ran, rows):
                    failures[row].append(validation.text)
        self.answer.check_failures = failures

    def expression_check(self, step: steps.ExpressionCheck) -> None:
        from engine.runtime.expressions import anomalies

        datasets = [("in", self.request), ("out", self.current.batch), *self.answer.others]
        shown = {name for name, _ in datasets}
        for ran in self.many:
            name = _dataset(ran)
            if name not in shown:
                datasets.append((name, ran.output.batch))
        found = anomalies(step.expressions, datasets, self.request.num_rows)
        self.answer.anomalies = [*self.answer.anomalies, *found]

    def columns_select(self, step: steps.ColumnsSelect) -> None:
        self.change(select_columns(self.current.batch, step.columns))

    def columns_to_rows(self, _: steps.ColumnsToRows) -> None:
        batch = columns_to_rows(self.current.batch)
        rows = self.current.batch.num_rows
        self.fan *= batch.num_rows // rows if rows else 1
        self.change(batch)

    def input_data_to_type(self, step: steps.InputDataToType) -> None:
        self.change(cast_numbers(self.current.batch, step.data_type))

    def change(self, batch: pa.RecordBatch) -> None:
        self.many, self.current = [], ModelOutput(batch)

    def rows_to_models(self, step: steps.RowsToModels) -> None:
        batch = self.current.batch
        group = self.fan if self.fan > 1 else max(batch.num_rows, 1)
        parts: list[ModelOutput] = []
        for row in range(batch.num_rows):
            reference = step.models.get(row % group)
            if reference is None:
                raise BadInput(f"no model is given for row {row % group}", row=row // self.fan)
            parts.append(self.infer(self.pipeline.models[reference], batch.slice(row, 1)).output)
        self.many = []
        if parts:
            self.current = _stack(parts)

    def _with_split(self, output: pa.RecordBatch) -> pa.RecordBatch:
        texts = [self.pipeline.split_text(model) for model in self.splits] * output.num_rows
        item = pa.field("inner", pa.string(), nullable=False)
        lists = cols.list_array(
            cols.string_array(texts), np.arange(output.num_rows + 1, dtype="i8") * len(self.splits), item
        )
        field = pa.field(SPLIT_FIELD, lists.type, nullable=False)
        return pa.RecordBatch.from_arrays([lists, *output.columns], schema=pa.schema([field, *output.schema]))


def _stack(parts: list[ModelOutput]) -> ModelOutput:
    first = parts[0].batch.schema
    for part in parts:
        if not part.batch.schema.equals(first):
            raise InferenceFailure(
                f"The rows' models give different outputs: {', '.join(first.names)} and "
                f"{', '.join(part.batch.schema.names)}.",
                status=400,
            )
    batch = pa.Table.from_batches([part.batch.replace_schema_metadata(None) for part in parts]).combine_chunks()
    return ModelOutput(batch.to_batches()[0], parts[0].varying)


def _dataset(ran: Ran) -> str:
    return f"out_{ran.model.document.name}"


def _put(datasets: list[tuple[str, pa.RecordBatch]], ran: Ran) -> None:
    """Add a model's outputs; a model that ran before under the same name gives way."""
    name = _dataset(ran)
    datasets[:] = [entry for entry in datasets if entry[0] != name]
    datasets.append((name, ran.output.batch))


_STEPS: dict[type, Any] = {
    steps.ModelInference: _Run.model_inference,
    steps.AuditResults: _Run.audit_results,
    steps.MultiOut: _Run.multi_out,
    steps.Nth: _Run.nth,
    steps.Average: _Run.average,
    steps.MetaValueSplit: _Run.meta_value_split,
    steps.RandomSplit: _Run.random_split,
    steps.TreeCheck: _Run.tree_check,
    steps.ExpressionCheck: _Run.expression_check,
    steps.ColumnsSelect: _Run.columns_select,
    steps.ColumnsToRows: _Run.columns_to_rows,
    steps.RowsToModels: _Run.rows_to_models,
    steps.InputDataToType: _Run.input_data_to_type,
}
