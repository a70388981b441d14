"""Arrow files from anybody: read right, or refused, never a crash and never more memory than allowed."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.contract import arrow_files
from engine.contract.arrow_files import decode_file, encode_file
from engine.contract.arrow_layout import measure
from engine.contract.failures import BadInput
from tests.engine.core.making import arrow_bytes


def sample() -> pa.Table:
    return pa.table({
        "tensor": pa.array([[1.0, 2.0], [3.0]], pa.list_(pa.float32())),
        "text": pa.array(["a", None]),
        "word": pa.array(["x", "x"]).dictionary_encode(),
        "deep": pa.array([{"a": [1]}, {"a": []}]),
    })  # fmt: skip


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("rows", [0, 1, 5000])
def test_the_extent_of_a_file_is_known_before_it_is_read(compression: str | None, rows: int) -> None:
    table = pa.table({"x": pa.array(np.zeros(rows)), "d": pa.array(["a"] * rows).dictionary_encode()})

    extent = measure(arrow_bytes(table, compression))

    assert extent.rows == rows
    assert 8 * rows <= extent.unpacked_bytes <= 13 * rows + 300


def test_what_is_written_can_be_read_again() -> None:
    batch = decode_file(arrow_bytes(sample()))

    assert decode_file(encode_file(batch)).equals(batch)
    assert batch.to_pylist() == sample().to_pylist()
    assert batch.schema.field("word").type == pa.string()


def test_a_file_that_unpacks_to_too_much_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    body = arrow_bytes(pa.table({"x": pa.array(np.zeros(1_000_000))}), "zstd")
    monkeypatch.setattr(arrow_files, "BYTES_LIMIT", 1_000_000)

    assert len(body) < 10_000
    with pytest.raises(BadInput, match="unpacks to 1000000 rows in 8000000 bytes"):
        decode_file(body)


def test_rows_that_take_no_bytes_are_counted() -> None:
    body = arrow_bytes(pa.table({"x": pa.nulls(2**25)}))

    with pytest.raises(BadInput, match="unpacks to 33554432 rows"):
        decode_file(body)


def test_a_dictionary_that_stands_for_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, "i1")), pa.array(["x" * 10_000]))
    body = arrow_bytes(pa.table({"x": column}))
    monkeypatch.setattr(arrow_files, "BYTES_LIMIT", 1_000_000)

    with pytest.raises(BadInput, match=r"field 'x'.*unpacks to 10004000 bytes"):
        decode_file(body)


def test_overlapping_list_views_are_refused_when_they_stand_for_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    views = pa.ListViewArray.from_arrays([0] * 1000, [10_000] * 1000, pa.array(np.zeros(10_000)))
    body = arrow_bytes(pa.table({"x": views}))
    monkeypatch.setattr(arrow_files, "BYTES_LIMIT", 1_000_000)

    with pytest.raises(BadInput, match="overlap"):
        decode_file(body)


def test_run_ends_are_decoded() -> None:
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array([1.0, 2.0]))

    assert decode_file(arrow_bytes(pa.table({"x": runs}))).to_pydict() == {"x": [1.0, 1.0, 2.0]}


def test_two_columns_of_one_name_are_refused() -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])

    with pytest.raises(BadInput, match="field 'x': the file has two columns of this name"):
        decode_file(arrow_bytes(table))


def test_a_union_is_refused() -> None:
    union = pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])])

    with pytest.raises(BadInput, match="union columns are not supported"):
        decode_file(arrow_bytes(pa.table({"x": union})))


def test_the_stream_format_is_refused() -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, sample().schema) as writer:
        writer.write_table(sample())

    with pytest.raises(BadInput, match="not an Arrow IPC file"):
        decode_file(bytes(sink.getvalue()))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), compression=st.sampled_from([None, "lz4", "zstd"]))
def test_a_damaged_file_is_read_or_refused(data: st.DataObject, compression: str | None) -> None:
    body = bytearray(arrow_bytes(sample(), compression))
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place] = data.draw(st.integers(0, 255))

    try:
        batch = decode_file(bytes(body))
    except BadInput:
        return
    batch.validate(full=True)
    batch.to_pylist()


@pytest.mark.slow
def test_a_thousand_damaged_files_are_read_or_refused() -> None:
    dice = random.Random(7)
    whole = [arrow_bytes(sample(), compression) for compression in (None, "lz4", "zstd")]
    for _ in range(10_000):
        body = bytearray(dice.choice(whole))
        for _ in range(dice.randint(1, 20)):
            body[dice.randrange(len(body))] = dice.choice([0, 1, 255, 127, 128, dice.randrange(256)])
        if dice.random() < 0.2:
            del body[dice.randrange(len(body)) :]
        try:
            decode_file(bytes(body)).to_pylist()
        except BadInput:
            continue


def test_dictionaries_views_and_extensions_within_lists_and_structs_become_plain() -> None:
    words = pa.array(["a", "b", "a"]).dictionary_encode()
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 3], pa.int32()), words)
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(["a", "b"], pa.string_view()), 1)
    structs = pa.StructArray.from_arrays([words.slice(0, 2), pa.nulls(2)], names=["w", "n"])
    table = pa.table({"lists": lists, "fixed": fixed, "structs": structs})

    batch = decode_file(arrow_bytes(table))

    batch.validate(full=True)
    assert batch.schema.field("lists").type == pa.list_(pa.string())
    assert batch.schema.field("structs").type == pa.struct([("w", pa.string()), ("n", pa.float64())])
    assert batch.to_pydict() == {
        "lists": [["a", "b"], ["a"]],
        "fixed": [["a"], ["b"]],
        "structs": [{"w": "a", "n": None}, {"w": "b", "n": None}],
    }
