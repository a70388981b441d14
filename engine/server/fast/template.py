"""Encoded records with holes: everything that is the same in all requests of a kind is encoded once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from engine.contract import columns as cols
from engine.contract import kernels
from engine.contract.arrow_files import encode_file
from engine.contract.datasets import Selection, select
from engine.server.fast import ipc, repeats

Buffer: TypeAlias = "bytes | bytearray | memoryview"
T = TypeVar("T")
Slot: TypeAlias = "str"
"""What belongs in a hole: `time`, `elapsed`, `in`, `out.<name>`; or `tail <slot>`, the last bytes of a repeated one."""
REPEATED: dict[Slot, int] = {"time": 8, "elapsed": 16}
"""Slots that are the same in all rows, and the bytes of their value."""


class NoTemplate(Exception):
    """The sample is not of a shape that templates are made of."""


class Sample:
    """A record as the plain path made it, of any number of rows: its first row is what all rows look like."""

    def __init__(self, record: pa.RecordBatch, field: str, outputs: Sequence[str]) -> None:
        self.field = field
        self.outputs = tuple(outputs)
        self.first = self._repeat(record.slice(0, 1), 1)
        slots = self.slots(self.first)
        if len(set(slots)) != 3 + len(self.outputs):
            raise NoTemplate("two parts of the record share their memory")

    @staticmethod
    def _repeat(row: pa.RecordBatch, rows: int) -> pa.RecordBatch:
        # Not by `take`, which would load `pyarrow.compute` into every engine.
        repeated = pa.concat_batches([row])
        while repeated.num_rows < rows:
            repeated = pa.concat_batches([repeated, repeated.slice(0, rows - repeated.num_rows)])
        return repeated

    def output_kinds(self) -> list[tuple[np.dtype[np.generic], int]]:
        """Return per output its element type and how many elements a row has."""
        leaves = [_leaf(self.first, "out", name) for name in self.outputs]
        return [(cols.NUMPY_TYPES[leaf.type], len(leaf)) for leaf in leaves]

    def of_rows(self, rows: int) -> pa.RecordBatch:
        """Return the record with its first row repeated."""
        return self._repeat(self.first, rows)

    def slots(self, record: pa.RecordBatch) -> dict[int, Slot]:
        """Return which memory of the record holds what: the address of the buffer, and the slot."""
        found = {
            _address(record.column("time")): "time",
            _address(_leaf(record, "in", self.field)): "in",
            _address(_leaf(record, "metadata", "elapsed")): "elapsed",
        }
        for name in self.outputs:
            found[_address(_leaf(record, "out", name))] = f"out.{name}"
        return found


def _leaf(record: pa.RecordBatch, dataset: str, name: str) -> pa.Array:
    column = record.column(dataset)
    array = column.field(column.type.get_field_index(name))
    while cols.is_list(array.type):
        if array.null_count:
            raise NoTemplate("nulls")
        array = array.values
    if array.null_count or array.type not in cols.NUMPY_TYPES:
        raise NoTemplate("not plain numbers")
    return array


def _address(array: pa.Array) -> int:
    buffer = array.buffers()[1]
    if buffer is None or array.offset:
        raise NoTemplate("no buffer of its own")
    return int(buffer.address)


APART_BYTES = 16 * 1024
"""Larger values are passed on where they lie instead of being copied to their neighbours."""


class Filling:
    """Constant pieces, and the slots between them."""

    __slots__ = ("constants", "repeats", "size", "slots")

    def __init__(self, raw: bytes, holes: Sequence[tuple[int, int, Slot]], *, repeats: int) -> None:
        self.repeats = repeats
        """How many times the values of `REPEATED` slots are to be written one after another."""
        self.constants: list[bytes] = []
        self.slots: list[Slot] = []
        at = 0
        for position, size, slot in sorted(holes):
            self.constants.append(raw[at:position])
            self.slots.append(slot)
            at = position + size
        self.constants.append(raw[at:])
        self.size = len(raw)

    def fill(self, values: dict[Slot, Buffer]) -> list[Buffer]:
        """Return the pieces with the values between them; small neighbours are put together."""
        parts: list[Buffer] = []
        run: list[Buffer] = [self.constants[0]]
        for slot, constant in zip(self.slots, self.constants[1:], strict=True):
            value = values[slot]
            if len(value) > APART_BYTES:
                parts.append(b"".join(run))
                parts.append(value)
                run = [constant]
            else:
                run.append(value)
                run.append(constant)
        parts.append(b"".join(run))
        return parts


def _holes(
    raw: bytes, layout: ipc.BatchLayout, chosen: pa.RecordBatch, slots: dict[int, Slot]
) -> list[tuple[int, int, Slot]]:
    addresses = ipc.leaf_buffers(chosen)
    if layout.compressed or len(addresses) != len(layout.buffers) or layout.rows != chosen.num_rows:
        raise NoTemplate("an unexpected layout")
    holes = []
    for address, (position, size) in zip(addresses, layout.buffers, strict=True):
        slot = slots.get(address)
        if slot is not None:
            holes.append((position, size, slot))
    return holes


COMPACT_ROWS = 32
"""From so many rows on, what is the same in all of them is kept compressed in the log."""


def message_template(sample: Sample, rows: int) -> Filling:
    """Return the template of a record as the message that the log keeps.

    Names and versions repeat in every row and are longer than many a row's numbers. They are compressed here, once, and
    so are the time and what else repeats but differs from request to request; the numbers stay as they are.
    """
    record = sample.of_rows(rows)
    slots = sample.slots(record)
    if rows < COMPACT_ROWS:
        raw = record.serialize().to_pybytes()
        return Filling(raw, _holes(raw, ipc.batch_layout(raw), record, slots), repeats=rows)
    plain = ipc.batch_layout(record.serialize().to_pybytes())
    raw = _compressed(record)
    layout = ipc.batch_layout(raw)
    addresses = ipc.leaf_buffers(record)
    if len(addresses) != len(layout.buffers) or not layout.body_size_at:
        raise NoTemplate("an unexpected layout")

    repeated = {slot: repeats.buffer(size, rows) for slot, size in REPEATED.items()}

    def kept(number: int) -> bytes | int:
        slot = slots.get(addresses[number])
        if slot in repeated:
            return repeated[slot][0]
        position, size = layout.buffers[number]
        return plain.buffers[number][1] if slot is not None else raw[position : position + size]

    packed, places = ipc.repack(raw, kept)
    holes = []
    for number, place in enumerate(places):
        slot = slots.get(addresses[number])
        if slot in repeated:
            _, value_at, tail_at = repeated[slot]
            holes.append((place + value_at, REPEATED[slot], slot))
            holes.append((place + tail_at, repeats.TAIL_BYTES, f"tail {slot}"))
        elif slot is not None:
            holes.append((place, plain.buffers[number][1], slot))
    return Filling(packed, holes, repeats=1)


def _compressed(record: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, record.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_batch(record)
    messages = pa.ipc.MessageReader.open_stream(sink.getvalue())
    messages.read_next_message()  # the schema's
    return bytes(messages.read_next_message().serialize().to_pybytes())


def file_template(sample: Sample, selection: Selection, rows: int) -> Filling:
    """Return the template of a reply as an Arrow file."""
    record = sample.of_rows(rows)
    chosen = select(record, selection)
    raw = encode_file(chosen)
    (layout,) = ipc.file_batches(raw)
    return Filling(raw, _holes(raw, layout, chosen, sample.slots(record)), repeats=rows)


_FORMATS = {"time": b"%d", "elapsed": b"%d,%d", "": b""}


class RowTemplate:
    """A row of a JSON reply: constant text, and the slots between."""

    def __init__(self, sample: Sample, selection: Selection) -> None:
        chosen = select(sample.first, selection)
        self._texts: list[bytes] = [b""]
        self._order: list[Slot] = []
        self._slots = sample.slots(sample.first)
        self._object(chosen.schema.names, chosen.columns)
        self.slots = frozenset(self._order)
        self._one = b"[%b]" % b"".join(
            text.replace(b"%", b"%%") + _FORMATS.get(slot, b"%b")
            for text, slot in zip(self._texts, [*self._order, ""], strict=True)
        )
        if not self.slots - {"time", "elapsed"}:
            raise NoTemplate("nothing differs between rows")

    def _object(self, names: Iterable[str], arrays: Iterable[pa.Array]) -> None:
        opening = b"{"
        for name, array in zip(names, arrays, strict=True):
            self._texts[-1] += opening + msgspec.json.encode(name) + b":"
            opening = b","
            self._value(array)
        self._texts[-1] += b"{}" if opening == b"{" else b"}"

    def _value(self, array: pa.Array) -> None:
        kind = array.type
        leaf, depth = array, 0
        while cols.is_list(leaf.type):
            leaf, depth = leaf.values, depth + 1
        buffers = leaf.buffers() if leaf.type in cols.NUMPY_TYPES else []
        slot = self._slots.get(buffers[1].address) if len(buffers) > 1 and buffers[1] is not None else None
        if slot is not None:
            if depth > 1:
                raise NoTemplate("lists of lists")
            self._texts[-1] += b"[" * depth
            self._order.append(slot)
            self._texts.append(b"]" * depth)
        elif pa.types.is_struct(kind):
            self._object([field.name for field in kind], [array.field(index) for index in range(kind.num_fields)])
        else:
            self._texts[-1] += msgspec.json.encode(cols.to_python(array)[0])

    def _bake(self, constants: dict[Slot, bytes], columns: dict[Slot, T]) -> tuple[list[bytes], list[T]]:
        """Return the texts between the columns that differ from row to row, and those columns."""
        texts = [self._texts[0]]
        lists: list[T] = []
        for slot, text in zip(self._order, self._texts[1:], strict=True):
            constant = constants.get(slot)
            if constant is not None:
                texts[-1] += constant + text
            else:
                lists.append(columns[slot])
                texts.append(text)
        return texts, lists

    def render_one(self, time_ms: int, elapsed_ns: tuple[int, int], columns: dict[Slot, list[bytes]]) -> bytes:
        """Return a reply of one row."""
        cells: list[int | bytes] = []
        for slot in self._order:
            if slot == "time":
                cells.append(time_ms)
            elif slot == "elapsed":
                cells += elapsed_ns
            else:
                cells.append(columns[slot][0])
        return self._one % tuple(cells)

    def render_each(self, constants: dict[Slot, bytes], columns: dict[Slot, list[bytes]]) -> list[bytes]:
        """Return one reply of one row per element of the columns."""
        texts, lists = self._bake(constants, columns)
        if len(lists) == 2:
            start, middle, end = b"[" + texts[0], texts[1], texts[2] + b"]"
            return [b"%b%b%b%b%b" % (start, a, middle, b, end) for a, b in zip(*lists, strict=True)]
        start, end = b"[" + texts[0], texts[-1] + b"]"
        if len(lists) == 1:
            return [start + a + end for a in lists[0]]
        return [start + self._row(texts, cells) + end for cells in zip(*lists, strict=True)]

    @staticmethod
    def _row(texts: list[bytes], cells: tuple[bytes, ...]) -> bytes:
        pieces = [cells[0]]
        for text, cell in zip(texts[1:-1], cells[1:], strict=True):
            pieces += (text, cell)
        return b"".join(pieces)

    def render(self, constants: dict[Slot, bytes], columns: dict[Slot, pa.BinaryArray]) -> list[Buffer]:
        """Return the parts of a reply of many rows: `constants` are the same in every row, `columns` differ."""
        texts, arrays = self._bake(constants, columns)
        texts[-1] += b","
        pieces: list[Any] = [texts[0]]
        for array, text in zip(arrays, texts[1:], strict=True):
            pieces += (array, text)
        rows = kernels.binary_join_element_wise(*pieces, b"")
        size = np.frombuffer(rows.buffers()[1], np.int32)[len(rows)]
        return [b"[", memoryview(rows.buffers()[2])[: size - 1], b"]"]
