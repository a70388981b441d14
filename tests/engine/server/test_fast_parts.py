"""The parts of the fast path, each against what it stands for."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.server.fast import flatten, ipc, repeats, texts

ordinary = st.floats(-1e6, 1e6) | st.integers(-(10**6), 10**6)
spellings = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " : ")])


@given(st.lists(st.floats(width=32), min_size=1, max_size=80))
def test_float32_texts_are_the_shortest_that_read_back(values: list[float]) -> None:
    array = np.array(values, "f4")

    found = texts.number_texts(array)

    if not np.isfinite(array).all():
        assert found is None
        return
    assert found is not None
    assert (np.array([np.float32(text.decode()) for text in found]) == array).all()
    assert found == [msgspec.json.encode(float(str(value))) for value in array]


@given(
    st.integers(1, 3),
    st.one_of(
        st.lists(st.floats(width=32) | st.integers(-20, 20).map(float), min_size=1, max_size=60).map(
            lambda found: np.array(found, "f4")
        ),
        st.lists(st.floats() | st.integers(-(2**60), 2**60).map(float), min_size=1, max_size=60).map(np.array),
        st.lists(st.floats(width=16), min_size=1, max_size=60).map(lambda found: np.array(found, "f2")),
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=60).map(lambda found: np.array(found, "i8")),
        st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=60).map(lambda found: np.array(found, "u8")),
    ),
)
@example(1, np.array([1e-6, 1e-5, 9.999999e-6, 1e-4, 1e15, 999999999999999.9, 9999999999.5, 1e16, 0.5, -0.0, 3.0]))
@example(1, np.array([1e-6, 1e-5, 9.999999e-6, 1e-4, 1e15, 1e16, 0.5, -0.0, 3.0, 1e-45, 3.4e38], "f4"))
def test_the_texts_of_many_rows_are_those_of_few(width: int, numbers: np.ndarray[Any, Any]) -> None:
    matrix = np.repeat(numbers, width).reshape(-1, width)

    found, few = texts.row_array(matrix), texts.row_texts(matrix)

    assert (found.to_pylist() if found is not None else None) == few


@given(st.integers(0, 40), st.sampled_from([pa.float32(), pa.float64(), pa.string(), pa.bool_()]))
def test_the_layout_of_a_message_is_where_pyarrow_put_it(rows: int, kind: pa.DataType) -> None:
    values = {"f": 1.5, "d": 2.5, "s": "x", "b": True}[
        {pa.float32(): "f", pa.float64(): "d", pa.string(): "s"}.get(kind, "b")
    ]
    batch = pa.RecordBatch.from_pylist(
        [{"a": {"b": [values] * 2}, "c": 1}] * rows,
        schema=pa.schema([("a", pa.struct([("b", pa.list_(kind))])), ("c", pa.int64())]),
    )
    raw = batch.serialize().to_pybytes()

    layout = ipc.batch_layout(raw)

    assert layout.rows == rows
    assert layout.end == len(raw)
    assert len(layout.buffers) == len(ipc.leaf_buffers(batch))
    position, size = layout.buffers[-1]
    assert np.frombuffer(raw[position : position + size], "i8").tolist()[:rows] == [1] * rows


@given(st.sampled_from([8, 16]), st.integers(32, 65_536), st.binary(min_size=16, max_size=16))
@example(8, 32, b"\x00" * 16)
@example(16, 65_536, bytes(range(16)))
def test_a_repeated_value_decompresses_to_its_repetitions(size: int, times: int, source: bytes) -> None:
    value = source[:size]
    buffer, value_at, tail_at = repeats.buffer(size, times)

    filled = bytearray(buffer)
    filled[value_at : value_at + size] = value
    filled[tail_at : tail_at + repeats.TAIL_BYTES] = value * (repeats.TAIL_BYTES // size)

    assert int.from_bytes(filled[:8], "little") == size * times
    assert pa.Codec("lz4").decompress(bytes(filled[8:]), size * times).to_pybytes() == value * times


@given(
    st.lists(st.lists(ordinary, min_size=2, max_size=2), min_size=1, max_size=9),
    spellings,
    st.sampled_from(["tensor", "a b", "é", "x.y"]),
)
def test_flattening_gives_the_numbers_and_their_texts(
    rows: list[list[float]], spelling: tuple[str, str], field: str
) -> None:
    body = json.dumps([{field: row} for row in rows], separators=spelling, ensure_ascii=False).encode()

    form = flatten.find_form(body, field)
    assert form is not None
    assert form.fits(body)
    if len(rows) > 1:
        found = flatten.many(body, form, 2, with_text=True)
        assert found is not None
        matrix, pieces = found
        assert [json.loads(b"[" + piece + b"]") for piece in pieces.to_pylist()] == rows
    else:
        piece = flatten.single(body, form)
        assert piece is not None
        matrix = flatten.join([piece], 2)
        assert json.loads(b"[" + piece + b"]") == rows[0]
    assert matrix is not None
    assert (matrix == np.array(rows, "f8")).all()


@pytest.mark.parametrize(
    "rows",
    [
        "[1,2]},{F:[3]}", "[1]},{F:[2,3]}", "[1,2,3]},{F:[4]}", "[1,2]},{F:[]}", "[1,2]},{F:[3,4,5]}",
        "[1,2]},{F:[3,]}", "[1,2]},{F:[3,null]}",
        "[1,2]},{F:[3,true]}", '[1,2]},{F:[3,"4"]}', "[1,2]},{F:[3,[4]]}", "[1,2]},{F:[3,{}]}",
        "[1,2]},{F: [3,4]},{F:[5,6]}", "[1,2]},{F:[3,4]},{F: [5,6]}", "[1,2]},{F:[3,4],F:[5,6]}", "[1,2]},{G:[3,4]}",
        "[1,2]},{F:[3,4]},{F:[5,6],G:[7,8]}", "[1,-9.25e307]},{F:[-9.25e307,4]}", "[-9.25e307,-9.25e307]},{F:[3,4]}",
        "[1,2,-9.25e307,3]},{F:[4]}", "[1,-9.25e307,3]},{F:[4,5]}", "[1,2],[3,4]},{F:[5,6]}", "[1,2]],[{F:[3,4]}",
    ],
)  # fmt: skip
def test_whatever_is_not_plainly_rows_of_numbers_is_left_to_the_plain_path(rows: str) -> None:
    body = ("[{F:" + rows + "]").replace("F", '"x"').replace("G", '"y"').encode()

    form = flatten.find_form(body, "x")

    assert form is None or flatten.many(body, form, 2, with_text=True) is None


@given(
    st.lists(st.lists(ordinary, max_size=4), min_size=2, max_size=6),
    st.sampled_from(["between", "in front", "inside", "nowhere"]),
    st.integers(0, 5),
)
def test_flattening_reads_what_json_reads_or_nothing(rows: list[list[float]], where: str, at: int) -> None:
    """Marks of our own among the numbers, or rows of other widths, must not go unnoticed."""
    row = rows[at % len(rows)]
    if where == "inside":
        row[at % (len(row) + 1) : 0] = [-9.25e307]
    elif where == "in front":
        row.insert(0, -9.25e307)
    elif where == "between":
        row.append(-9.25e307)
    body = json.dumps([{"x": each} for each in rows], separators=(",", ":")).encode()
    form = flatten.find_form(body, "x")
    assert form is not None

    for width in (1, 2, 3, 4):
        found = flatten.many(body, form, width, with_text=False)
        if found is not None:
            assert found[0].tolist() == rows
