"""ONNX models in onnxruntime."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Its Linux wheels send telemetry unless told not to before the import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort
import pyarrow as pa

from engine.contract.deployment import ModelDocument
from engine.contract.failures import BadInput, InferenceFailure
from engine.runtime.filtering import drop_below
from engine.runtime.models import LoadError, ModelOutput
from engine.runtime.outputs import apply_schema, join_rows, output_columns, read_schema
from engine.runtime.tensors import Tensor, TensorSpec, fit, row_values

if hasattr(ort, "disable_telemetry_events"):
    ort.disable_telemetry_events()
ort.set_default_logger_severity(4)

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype("f4"),
    "tensor(double)": np.dtype("f8"),
    "tensor(float16)": np.dtype("f2"),
    "tensor(int8)": np.dtype("i1"),
    "tensor(int16)": np.dtype("i2"),
    "tensor(int32)": np.dtype("i4"),
    "tensor(int64)": np.dtype("i8"),
    "tensor(uint8)": np.dtype("u1"),
    "tensor(uint16)": np.dtype("u2"),
    "tensor(uint32)": np.dtype("u4"),
    "tensor(uint64)": np.dtype("u8"),
    "tensor(bool)": np.dtype("?"),
    "tensor(string)": np.dtype(object),
}
_PROVIDERS = {
    "none": (),
    "cuda": ("CUDAExecutionProvider",),
    "jetson": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
    "openvino": ("OpenVINOExecutionProvider",),
    "rocm": ("MIGraphXExecutionProvider", "ROCMExecutionProvider"),
    "qaic": ("QAicExecutionProvider",),
    "aio": ("AIOExecutionProvider",),
}
_BIG_INPUT_BYTES = 4 * 1024 * 1024
"""Above this, memory that a run took is given back at its end instead of being kept for the next one."""


class OnnxModel:
    """A model version in an onnxruntime session of its own; any number of threads may run it."""

    def __init__(self, document: ModelDocument, threads: int = 1) -> None:
        self.document = document
        self._config = document.config
        self._session = _open_session(document, threads)
        self.inputs = tuple(_spec(node, "input", document.name) for node in self._session.get_inputs())
        if not self.inputs:
            raise LoadError(f"Model {document.name!r} has no inputs; there is nothing to infer on.")
        # A model exported for a batch of one takes rows one at a time whatever its configuration says.
        self._is_single = document.config.batch_config == "single" or any(
            spec.shape[:1] == (1,) for spec in self.inputs
        )
        nodes = self._session.get_outputs()
        self._names = [node.name for node in nodes]
        # What `InferenceSession.run` calls once it has looked at its arguments, which takes longer than a small model.
        self._run_session = self._session._sess.run
        self._shapes = [_shape(node.shape) if node.type.startswith("tensor(") else None for node in nodes]
        self.outputs = tuple(_spec(node, "output", document.name) for node in nodes if node.type.startswith("tensor("))
        for node in nodes:
            _refuse_type(node, document.name)
        self._input_schema = read_schema(document.config.input_schema, f"input schema of model {document.name!r}")
        self._output_schema = read_schema(document.config.output_schema, f"output schema of model {document.name!r}")
        limit = (document.config.dynamic_batching_config or {}).get("batch_size_limit")
        self._row_limit = limit if isinstance(limit, int) and limit > 0 else None
        self.on_run: Callable[[int, int], None] = lambda _rows, _elapsed_ns: None
        """Told of every run: its rows and nanoseconds."""
        self._giving_back = ort.RunOptions()
        self._giving_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        _check_fields(self)

    @property
    def session(self) -> ort.InferenceSession:
        """The session itself, for callers that build on its plain inputs and outputs."""
        return self._session

    @property
    def runs_rows_alone(self) -> bool:
        """Whether rows are fed one at a time (`batch_config: single`)."""
        return self._is_single

    @property
    def output_schema(self) -> pa.Schema | None:
        """The declared schema of the outputs, if there is one."""
        return self._output_schema

    @property
    def usual_fields(self) -> list[str]:
        """The fields that callers send when they follow the model's configuration."""
        names = [spec.name for spec in self.inputs]
        declared = self._config.tensor_fields or (self._input_schema.names if self._input_schema else names)
        return list(declared) if len(declared) == len(names) else names

    def columns(self, names: list[str], *, from_step: bool) -> list[str]:
        """Say which columns feed the inputs, in the inputs' order; raises `BadInput` when one is missing."""
        wanted = [spec.name for spec in self.inputs]
        declared = [self._config.tensor_fields, self._input_schema.names if self._input_schema else None, wanted]
        present = set(names)
        candidates = [fields for fields in declared if fields and len(fields) == len(wanted)]
        for fields in candidates:
            if present.issuperset(fields):
                return list(fields)
        if from_step and len(names) == len(wanted):
            return names
        if len(wanted) == 1 and "tensor" in present:
            return ["tensor"]
        expected = candidates[0]
        missing = next(field for field in expected if field not in present)
        raise BadInput(
            f"model {self.document.name!r} needs the field {', '.join(expected)}; got {', '.join(names) or 'none'}",
            field=missing,
        )

    def run(self, batch: pa.RecordBatch, *, from_step: bool) -> ModelOutput:
        """Infer on every row; raises `InferenceFailure`."""
        rows = batch.num_rows
        if not rows:
            return self._shaped(self._no_rows())
        names = self.columns(batch.schema.names, from_step=from_step)
        columns = [(batch.schema.field(name), batch.column(name)) for name in names]
        if self._is_single and rows > 1:
            parts = []
            for row in range(rows):
                try:
                    parts.append(self._run_rows([(field, array.slice(row, 1)) for field, array in columns], 1))
                except BadInput as exc:
                    raise BadInput(exc.reason, field=exc.field, row=row) from exc
            return self._shaped(join_rows(parts))
        if self._row_limit is not None and rows > self._row_limit:
            starts = range(0, rows, self._row_limit)
            size = self._row_limit
            parts = [
                self._run_rows([(f, array.slice(start, size)) for f, array in columns], min(size, rows - start))
                for start in starts
            ]
            return self._shaped(join_rows(parts))
        return self._shaped(self._run_rows(columns, rows))

    def _shaped(self, output: ModelOutput) -> ModelOutput:
        if self._config.filter_threshold is not None:
            output = drop_below(output, self._config.filter_threshold)
        return output if self._output_schema is None else apply_schema(output, self._output_schema)

    def _run_rows(self, columns: list[tuple[pa.Field, pa.Array]], rows: int) -> ModelOutput:
        tensors: dict[str, Tensor] = {}
        whole: dict[str, tuple[Tensor, tuple[int, ...]]] = {}
        for spec, (field, array) in zip(self.inputs, columns, strict=True):
            values, row_shape = row_values(array, field, spec)
            is_whole, target = fit(spec, row_shape, field.name)
            if is_whole:
                whole[spec.name] = (values, target)
            else:
                _check_batch(spec, rows)
                tensors[spec.name] = values.reshape(rows, *target)
        if not whole:
            return output_columns(self._names, self._shapes, self.execute(tensors), rows)
        parts = []
        for row in range(rows):
            feed = {name: tensor[row : row + 1] for name, tensor in tensors.items()}
            for name, (values, target) in whole.items():
                feed[name] = values.reshape(rows, *target)[row]
            parts.append(_whole_outputs(self._names, self._shapes, self.execute(feed)))
        return join_rows(parts)

    def execute(self, feed: dict[str, Tensor]) -> list[Any]:
        """Run the session on ready tensors and return its outputs; raises `InferenceFailure`."""
        started = time.perf_counter_ns()
        outputs = self.infer(feed)
        self.on_run(len(feed[self.inputs[0].name]), time.perf_counter_ns() - started)
        return outputs

    def infer(self, feed: dict[str, Tensor]) -> list[Any]:
        """Do what `execute` does for a caller that tells `on_run` of it."""
        size = 0
        for tensor in feed.values():
            size += tensor.nbytes
        options = self._giving_back if size > _BIG_INPUT_BYTES else None
        try:
            outputs: list[Any] = self._run_session(self._names, feed, options)
        except _ORT_ERRORS as exc:
            raise InferenceFailure(f"Model {self.document.name!r} cannot run on this input: {exc}", status=400) from exc
        return outputs

    def bind_row(self, outputs: Sequence[Tensor]) -> BoundRow:
        """Return a runner of one row for a model of one input, whose outputs have the shapes and types of these."""
        (spec,) = self.inputs
        row = np.zeros((1, *(size or 1 for size in spec.shape[1:])), spec.dtype)
        binding = self._session.io_binding()
        kept = [np.zeros(output.shape, output.dtype) for output in outputs]
        binding.bind_ortvalue_input(spec.name, ort.OrtValue.ortvalue_from_numpy(row))
        for name, output in zip(self._names, kept, strict=True):
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(output))
        return BoundRow(self._session, binding, row, kept)

    def _no_rows(self) -> ModelOutput:
        """Return columns without rows, as far as the model says what they would be."""
        fields, arrays = [], []
        for spec in self.outputs:
            shape = tuple(size or 0 for size in spec.shape[1:]) or (1,)
            value = np.zeros((0, *shape), spec.dtype)
            one = output_columns([spec.name], [spec.shape], [value], 0).batch
            fields.append(one.schema.field(0))
            arrays.append(one.column(0))
        return ModelOutput(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)))

    def warm_up(self) -> None:
        """Run once on zeroes where the model fixes its shapes; models of free shape are left alone."""
        feed: dict[str, Tensor] = {}
        for spec in self.inputs:
            if any(size is None for size in spec.shape[1:]):
                return
            shape = [size or 1 for size in spec.shape]
            feed[spec.name] = np.full(shape, "", object) if spec.dtype.kind == "O" else np.zeros(shape, spec.dtype)
        try:
            self._session.run(None, feed)
        except _ORT_ERRORS:
            # Zeroes need not be a sensible input (an index, a length); real requests say whether the model runs.
            return


class BoundRow:
    """One row through a session whose input and outputs stay where they are: a small model takes much less time so.

    Not for two threads at once; each run writes over `outputs`.
    """

    def __init__(
        self, session: ort.InferenceSession, binding: ort.IOBinding, row: Tensor, outputs: list[Tensor]
    ) -> None:
        self._run = session._sess.run_with_iobinding
        self._binding = binding
        self._bound = binding._iobinding
        self._row = row.reshape(-1)
        self.outputs = outputs

    def run(self, row: Tensor) -> None:
        """Infer on a flat row of any numbers; raises `InferenceFailure`, also when an output is of another shape."""
        self._row[...] = row
        try:
            self._run(self._bound, None)
        except _ORT_ERRORS as exc:
            raise InferenceFailure(f"The model cannot run on this input: {exc}", status=400) from exc


def _ort_errors() -> tuple[type[Exception], ...]:
    state = ort.capi.onnxruntime_pybind11_state
    names = (
        "Fail", "InvalidArgument", "NoSuchFile", "NoModel", "EngineError", "RuntimeException", "InvalidProtobuf",
        "ModelLoaded", "NotImplemented", "InvalidGraph", "EPFail", "ModelRequiresCompilation", "NotFound",
    )  # fmt: skip
    found = tuple(getattr(state, name) for name in names if hasattr(state, name))
    return (*found, RuntimeError, ValueError, TypeError)


_ORT_ERRORS = _ort_errors()


def _open_session(document: ModelDocument, threads: int) -> ort.InferenceSession:
    if not Path(document.path).is_file():
        raise LoadError(f"Model {document.name!r}: its file {document.path} is not there.")
    options = ort.SessionOptions()
    options.intra_op_num_threads = max(threads, 1)
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    # Patterns are kept per input shape for ever; requests come in every size.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(document.path, options, providers=_providers(document))
    except _ORT_ERRORS as exc:
        raise LoadError(f"Model {document.name!r} cannot be loaded: {exc}") from exc


def _providers(document: ModelDocument) -> list[str]:
    """Return the execution providers for the model's acceleration; raises `LoadError` when this build has none."""
    accel = next(iter(document.accel), "none") if isinstance(document.accel, dict) else document.accel or "none"
    if accel not in _PROVIDERS:
        raise LoadError(f"Model {document.name!r} asks for the unknown acceleration {accel!r}.")
    available = set(ort.get_available_providers())
    wanted = [provider for provider in _PROVIDERS[accel] if provider in available]
    if _PROVIDERS[accel] and not wanted:
        raise LoadError(
            f"Model {document.name!r} asks for acceleration {accel!r}, but this engine's onnxruntime {ort.__version__} "
            f"has no {' or '.join(_PROVIDERS[accel])}; install a build that has it or upload the model with accel none."
        )
    return [*wanted, "CPUExecutionProvider"]


def _shape(dims: list[Any]) -> tuple[int | None, ...]:
    # Some converters write 0 for the batch.
    return tuple(dim if isinstance(dim, int) and dim > 0 else None for dim in dims)


def _spec(node: Any, what: str, model: str) -> TensorSpec:
    if node.type not in _DTYPES:
        raise LoadError(f"Model {model!r}: {what} {node.name!r} is a {node.type}, which this engine cannot fill.")
    return TensorSpec(node.name, _DTYPES[node.type], _shape(node.shape))


def _refuse_type(node: Any, model: str) -> None:
    if not node.type.startswith(("tensor(", "seq(", "map(")):
        raise LoadError(f"Model {model!r}: output {node.name!r} is a {node.type}, which this engine cannot show.")


def _check_fields(model: OnnxModel) -> None:
    fields = model.document.config.tensor_fields
    if fields and len(fields) != len(model.inputs):
        names = ", ".join(spec.name for spec in model.inputs)
        raise LoadError(
            f"Model {model.document.name!r}: tensor_fields names {len(fields)} fields, "
            f"the model has {len(model.inputs)} inputs ({names})."
        )


def _check_batch(spec: TensorSpec, rows: int) -> None:
    size = spec.shape[0]
    if size is not None and size != rows:
        raise BadInput(f"the model takes exactly {size} rows at a time, got {rows}")


def _whole_outputs(names: list[str], shapes: list[Any], values: list[Any]) -> ModelOutput:
    """Show the outputs of one run as one row: without a batch dimension all of a tensor belongs to it."""
    wrapped = [value[np.newaxis] if isinstance(value, np.ndarray) else [value] for value in values]
    return output_columns(names, [None if shape is None else (1, *shape) for shape in shapes], wrapped, 1)
