"""The fast path of one pipeline: a single ONNX model that reads one field of numbers."""

from __future__ import annotations

import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from engine.contract import columns as cols
from engine.contract.datasets import Selection
from engine.contract.failures import BadInput, InferenceFailure
from engine.server.fast import flatten
from engine.server.fast.template import (
    Buffer,
    Filling,
    NoTemplate,
    RowTemplate,
    Sample,
    Slot,
    file_template,
    message_template,
)
from engine.server.fast.texts import Texts

Tensor = np.ndarray[Any, Any]
T = TypeVar("T", bound=Texts)

TEMPLATE_BYTES = 64 * 1024 * 1024
"""Encoded templates kept per pipeline; the least recently used go first."""
NEAR_LIMIT = 0.95
"""Rows whose record is larger than this part of the limit are left to the plain path, which measures each."""
KNOWN_LAYOUTS = 64
LARGEST_LAYOUT_BYTES = 1024 * 1024
ROW_LIMIT = 65_536
SMALL_BYTES = 4096
"""Copying so little takes no longer than looking at it in place."""
_JSON_LISTS = pa.list_(pa.field("item", pa.float64()))

_TIME = struct.Struct("<q")
_ELAPSED = struct.Struct("<QQ")


def ignore_overflow() -> None:
    """Let numbers beyond float32 become infinities without a warning, in this thread from now on."""
    np.seterr(over="ignore")


ignore_overflow()  # and so in the event loop's thread


class Unfit(Exception):
    """This request is not for the fast path."""


@dataclass(slots=True)
class ArrowLayout:
    """An Arrow file of which only the numbers change from request to request."""

    start: bytes
    end: bytes
    position: int
    rows: int
    dtype: np.dtype[Any]
    schema: pa.Schema


@dataclass(slots=True)
class Work:
    """Rows of one request on their way."""

    matrix: Tensor | None
    """The rows in the request's own type; None for a single JSON record that is still text."""
    rows: int
    kind: Kind
    pieces: Texts | None
    """The text of the numbers of each row of a JSON request, when the reply wants it."""


class Kind:
    """Requests of one input type: the record they make, and its templates."""

    def __init__(self, schema: pa.Schema | None) -> None:
        self.schema = schema
        self.field = schema.names[0] if schema is not None else ""
        self.sample: Sample | None = None
        self.log_sample: Sample | None = None
        self.log_schema: pa.Schema | None = None
        self.log_of_one: Filling | None = None
        self.is_unfit = False
        self.row_templates: dict[Selection, RowTemplate | None] = {}


class FastPath:
    """Reads requests into matrices, and writes replies and log records from templates."""

    def __init__(self, model: Any, log_limit_bytes: int) -> None:
        spec = model.inputs[0]
        self.model = model
        self.dtype: np.dtype[Any] = spec.dtype
        self.row_shape: tuple[int, ...] = spec.row_shape
        self.width = int(np.prod(self.row_shape))
        self._is_flat = len(self.row_shape) == 1
        self.input_name: str = spec.name
        self.outputs = [output.name for output in model.outputs]
        self._output_slots = [f"out.{name}" for name in self.outputs]
        self._log_limit_bytes = log_limit_bytes
        self._bound: Any = None
        self._bound_outputs: list[Tensor] = []
        self._may_bind = self.width * self.dtype.itemsize <= SMALL_BYTES
        self._form = flatten.NO_FORM
        self._json = Kind(None)
        self._arrow: list[Kind] = []
        self._output_kinds: list[tuple[np.dtype[Any], int]] = []
        self._layouts: OrderedDict[int, list[ArrowLayout]] = OrderedDict()
        self._fillings: OrderedDict[tuple[Any, ...], Filling] = OrderedDict()
        self._fillings_bytes = 0

    # Requests.

    def read_one(self, body: bytes | bytearray) -> bytes | None:
        """Return the text of the numbers of a JSON body of one record, or None."""
        form = self._form
        if not form.fits(body):
            found = flatten.find_form(body, self._json.field)
            if found is None:
                return None
            form = self._form = found
        return flatten.single(body, form)

    def read_many(self, body: bytes | bytearray, *, with_text: bool) -> Work | None:
        """Read a JSON body of several records."""
        if self._json.sample is None:
            return None
        form = self._form
        found = flatten.many(body, form, self.width, with_text=with_text) if form.fits(body) else None
        if found is None:  # perhaps for what stands between its rows
            other = flatten.find_form(body, self._json.field)
            if other is None or other.between == form.between:
                return None
            self._form = other
            found = flatten.many(body, other, self.width, with_text=with_text)
        if found is None or len(found[0]) > ROW_LIMIT:
            return None
        matrix, pieces = found
        return Work(matrix, len(matrix), self._json, pieces)

    def read_arrow(self, body: bytes | bytearray) -> Work | None:
        """Read an Arrow file of a layout that was seen before."""
        for layout in self._layouts.get(len(body), ()):
            if body.startswith(layout.start) and body.endswith(layout.end):
                kind = self._kind(layout.schema)
                if kind.sample is None:
                    return None
                matrix = np.frombuffer(body, layout.dtype, layout.rows * self.width, layout.position)
                return Work(matrix.reshape(layout.rows, self.width), layout.rows, kind, None)
        return None

    def json_work(self, pieces: list[bytes]) -> Work | None:
        """Read single JSON records of several requests at once."""
        matrix = flatten.join(pieces, self.width)
        return None if matrix is None else Work(matrix, len(pieces), self._json, pieces)

    @property
    def usual_field(self) -> str:
        """The field that clients send when they follow the model's configuration."""
        fields = self.model.document.config.tensor_fields
        return str(fields[0]) if fields else self.input_name

    @property
    def knows_json(self) -> bool:
        """Whether a JSON request went through the plain path, so that templates can be made."""
        return self._json.sample is not None

    def run_one(self, matrix: Tensor) -> list[Tensor]:
        """Do what `run` does for one row, for the event loop's thread alone; the next run overwrites the outputs."""
        bound = self._bound
        if bound is None:
            values = self._infer(matrix)
            outputs = self._flat(values, 1)
            if self._may_bind and sum(output.nbytes for output in outputs) <= SMALL_BYTES:
                self._bound = self.model.bind_row(values)
                self._bound_outputs = self._flat(self._bound.outputs, 1)
            return outputs
        try:
            bound.run(matrix[0])
        except InferenceFailure as exc:
            # An input that the model does not take, or outputs whose size hangs on the input.
            self._bound, self._may_bind = None, False
            raise Unfit from exc
        return self._bound_outputs

    def run(self, matrix: Tensor) -> list[Tensor]:
        """Infer on a matrix; raises `Unfit` when the outputs are not what templates hold.

        Whoever asks tells the model's `on_run` of it.
        """
        return self._flat(self._infer(matrix), len(matrix))

    def _infer(self, matrix: Tensor) -> list[Any]:
        ready = matrix if matrix.dtype is self.dtype else matrix.astype(self.dtype)
        if not self._is_flat:
            ready = ready.reshape(len(matrix), *self.row_shape)
        try:
            values: list[Any] = self.model.infer({self.input_name: ready})
        except InferenceFailure as exc:
            raise Unfit from exc
        return values

    def _flat(self, values: list[Any], rows: int) -> list[Tensor]:
        outputs = []
        for value, (dtype, width) in zip(values, self._output_kinds, strict=True):
            if (
                type(value) is not np.ndarray
                or value.dtype != dtype
                or not value.ndim
                or value.shape[0] != rows
                or value.size != rows * width
            ):
                raise Unfit
            fits = value.shape == (rows, width) and value.flags.c_contiguous
            outputs.append(value if fits else np.ascontiguousarray(value).reshape(rows, width))
        return outputs

    # Learning.

    def learn_json(self, request: pa.RecordBatch, reply: pa.RecordBatch, logged: pa.RecordBatch | None) -> None:
        """Take the templates from what the plain path made of a JSON request."""
        if self._json.sample is not None or request.num_columns != 1 or request.schema.field(0).type != _JSON_LISTS:
            return
        self._json.field = request.schema.names[0]
        self._learn(self._json, reply, logged)

    def learn_arrow(
        self, body: bytes | bytearray, request: pa.RecordBatch, reply: pa.RecordBatch, logged: pa.RecordBatch | None
    ) -> None:
        """Remember the layout of an Arrow request, and the templates of its kind."""
        layout = self._layout(body, request)
        if layout is None:
            return
        kind = self._kind(request.schema)
        if kind.sample is None:
            self._learn(kind, reply, logged)
        if kind.sample is not None:
            known = self._layouts.setdefault(len(body), [])
            del known[3:]
            known.insert(0, layout)
            while len(self._layouts) > KNOWN_LAYOUTS:
                self._layouts.popitem(last=False)

    def _kind(self, schema: pa.Schema) -> Kind:
        for kind in self._arrow:
            if kind.schema is schema:
                return kind
        for kind in self._arrow:
            if kind.schema is not None and kind.schema.equals(schema, check_metadata=True):
                return kind
        kind = Kind(schema)
        self._arrow.insert(0, kind)
        del self._arrow[16:]
        return kind

    def _learn(self, kind: Kind, reply: pa.RecordBatch, logged: pa.RecordBatch | None) -> None:
        if kind.is_unfit or not reply.num_rows:
            return
        try:
            sample = Sample(reply, kind.field, self.outputs)
            kinds = sample.output_kinds()
            if self._output_kinds not in ([], kinds):
                raise NoTemplate("the outputs are of another shape than before")
            self._output_kinds = kinds
            if logged is not None:
                drops = any(logged.column("metadata").field("dropped").to_pylist())
                is_large = logged.slice(0, 1).nbytes > self._log_limit_bytes * NEAR_LIMIT
                if logged.num_rows != reply.num_rows or drops or is_large:
                    raise NoTemplate("the log keeps less than the reply shows")
                kind.log_sample = Sample(logged, kind.field, self.outputs)
                kind.log_schema = kind.log_sample.first.schema
            kind.sample = sample
        except (NoTemplate, KeyError):
            kind.is_unfit = True

    def _layout(self, body: bytes | bytearray, request: pa.RecordBatch) -> ArrowLayout | None:
        rows = request.num_rows
        if not 0 < rows <= ROW_LIMIT or request.num_columns != 1:
            return None
        column = request.column(0)
        if not cols.is_list(column.type) or column.null_count or column.values.null_count:
            return None
        elements, offsets = cols.list_parts(column)
        dtype = cols.NUMPY_TYPES.get(elements.type)
        if dtype is None or dtype.kind != "f" or (np.diff(offsets) != self.width).any():
            return None
        base = np.frombuffer(body, "u1").ctypes.data
        values = elements.buffers()[1]
        position = values.address + elements.offset * dtype.itemsize - base
        end = position + rows * self.width * dtype.itemsize
        if position < 0 or end > len(body) or len(body) - (end - position) > LARGEST_LAYOUT_BYTES:
            return None
        return ArrowLayout(
            bytes(body[:position]), bytes(body[end:]), position, rows, dtype, self._kind(request.schema).schema
        )

    # Replies.

    def _filling(self, key: tuple[Any, ...], make: Any) -> Filling:
        filling = self._fillings.get(key)
        if filling is None:
            filling = self._fillings[key] = make()
            self._fillings_bytes += filling.size
            while self._fillings_bytes > TEMPLATE_BYTES and len(self._fillings) > 1:
                _, dropped = self._fillings.popitem(last=False)
                self._fillings_bytes -= dropped.size
        else:
            self._fillings.move_to_end(key)
        return filling

    def can_learn(self, body: bytes | bytearray, request: pa.RecordBatch, is_arrow: bool) -> bool:
        """Say whether a request that was read is of a kind that templates can be made for, as far as its input says."""
        if not is_arrow:
            return bool(request.num_columns == 1 and request.schema.field(0).type == _JSON_LISTS)
        return self._layout(body, request) is not None and not self._kind(request.schema).is_unfit

    def wants(self, body: bytes | bytearray, is_arrow: bool) -> bool:
        """Say whether learning from a request could help later ones."""
        if is_arrow:
            return len(self._layouts.get(len(body), ())) < 3
        return self._json.sample is None and not self._json.is_unfit

    def row_template_of_json(self, selection: Selection) -> RowTemplate | None:
        """Return the JSON row of a selection for JSON requests."""
        return self.row_template(self._json, selection)

    def row_template(self, kind: Kind, selection: Selection) -> RowTemplate | None:
        """Return the JSON row of a selection; None where the plain path must answer."""
        try:
            return kind.row_templates[selection]
        except KeyError:
            pass
        template = None
        if kind.sample is not None:
            try:
                template = RowTemplate(kind.sample, selection)
            except (NoTemplate, BadInput):
                template = None  # the plain path says what is wrong with the selection
            if len(kind.row_templates) > 64:
                kind.row_templates.clear()
            kind.row_templates[selection] = template
        return template

    def log_message(
        self, work: Work, matrix: Tensor, outputs: Sequence[Tensor], time_ms: int, elapsed_ns: tuple[int, int]
    ) -> tuple[pa.Schema, list[Buffer]]:
        """Return the record of some rows as the log keeps it: its schema and the parts of its message.

        Raises `Unfit`.
        """
        sample = work.kind.log_sample
        assert sample is not None  # noqa: S101 - learned together with the reply's
        rows = len(matrix)
        filling = work.kind.log_of_one if rows == 1 else None
        if filling is None:
            try:
                filling = self._filling(("log", id(work.kind), rows), lambda: message_template(sample, rows))
            except (NoTemplate, ValueError) as exc:
                raise Unfit from exc
            if rows == 1:
                work.kind.log_of_one = filling
        return work.kind.log_schema, filling.fill(self._values(filling, matrix, outputs, time_ms, elapsed_ns))

    def arrow_reply(
        self,
        work: Work,
        selection: Selection,
        outputs: Sequence[Tensor],
        time_ms: int,
        elapsed_ns: tuple[int, int],
    ) -> list[Buffer]:
        """Return the parts of an Arrow reply; raises `Unfit`."""
        sample = work.kind.sample
        assert sample is not None and work.matrix is not None  # noqa: S101, PT018 - read_arrow looked
        try:
            filling = self._filling(
                ("file", id(work.kind), selection, work.rows), lambda: file_template(sample, selection, work.rows)
            )
        except (NoTemplate, BadInput) as exc:
            raise Unfit from exc
        return filling.fill(self._values(filling, work.matrix, outputs, time_ms, elapsed_ns))

    def _values(
        self, filling: Filling, matrix: Tensor, outputs: Sequence[Tensor], time_ms: int, elapsed_ns: tuple[int, int]
    ) -> dict[Slot, Buffer]:
        time, elapsed, repeats = _TIME.pack(time_ms), _ELAPSED.pack(*elapsed_ns), filling.repeats
        values: dict[Slot, Buffer] = {"in": _raw(matrix), "time": time * repeats, "elapsed": elapsed * repeats}
        if repeats == 1:
            values["tail time"], values["tail elapsed"] = time + time, elapsed
        for slot, output in zip(self._output_slots, outputs, strict=True):
            values[slot] = _raw(output)
        return values

    def json_columns(
        self,
        template: RowTemplate,
        pieces: T | None,
        outputs: Sequence[Tensor],
        write: Callable[[Tensor], T | None],
    ) -> dict[Slot, T]:
        """Return the texts of the columns that differ between rows; raises `Unfit` for numbers JSON has no text for."""
        columns: dict[Slot, T] = {}
        slots = template.slots
        if "in" in slots:
            if pieces is None:
                raise Unfit
            columns["in"] = pieces
        for slot, output in zip(self._output_slots, outputs, strict=True):
            if slot in slots:
                texts = write(output)
                if texts is None:
                    raise Unfit
                columns[slot] = texts
        return columns


def constants(time_ms: int, elapsed_ns: tuple[int, int]) -> dict[Slot, bytes]:
    """Return the texts that are the same in all rows of a reply."""
    return {"time": b"%d" % time_ms, "elapsed": b"%d,%d" % elapsed_ns}


def now_ms() -> int:
    """Return the time that records carry."""
    return time.time_ns() // 1_000_000


def _raw(values: Tensor) -> Buffer:
    return values.tobytes() if values.nbytes <= SMALL_BYTES else memoryview(values).cast("B")  # type: ignore[arg-type]  # numpy's stubs hide the buffer
