"""Forms read as they arrive, however their bytes are cut."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import Invalid, TooLarge
from app.kit.multipart import Form, PartHead, boundary_of

BOUNDARY = b"----boundary7"


async def stream(raw: bytes, cuts: list[int]) -> AsyncIterator[bytes]:
    edges = sorted({min(c, len(raw)) for c in cuts} | {0, len(raw)})
    for start, end in pairwise(edges):
        yield raw[start:end]


def part(head: str | bytes, body: bytes) -> bytes:
    head = head.encode() if isinstance(head, str) else head
    return b"--" + BOUNDARY + b"\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + body + b"\r\n"


def end() -> bytes:
    return b"--" + BOUNDARY + b"--\r\n"


async def read(raw: bytes, cuts: list[int]) -> list[tuple[PartHead, bytes]]:
    form, found = Form(stream(raw, cuts), BOUNDARY), []
    while (head := await form.next()) is not None:
        found.append((head, b"".join([chunk async for chunk in form.data()])))
    return found


# Bodies that look like boundaries, or nearly so, are the ones a reader gets wrong.
TRICKY = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from(
            [b"\r\n", b"\r\n--", b"\r\n--" + BOUNDARY[:-1], b"--" + BOUNDARY, b"\r", b"\n", b"-", b"\r\r\n-"]
        ),
    ),
    max_size=8,
).map(b"".join)


def is_clean(body: bytes) -> bool:
    return b"\r\n--" + BOUNDARY not in b"\r\n" + body + b"\r\n"


@settings(max_examples=300, deadline=None)
@given(
    bodies=st.lists(TRICKY.filter(is_clean), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 1500), max_size=40),
)
async def test_every_part_comes_out_as_it_went_in_wherever_the_stream_is_cut(
    bodies: list[bytes], cuts: list[int]
) -> None:
    raw = b"".join(part(f'name="part{n}"; filename="f{n}.onnx"', body) for n, body in enumerate(bodies)) + end()

    found = await read(raw, cuts)

    assert [(h.name, h.filename, body) for h, body in found] == [
        (f"part{n}", f"f{n}.onnx", body) for n, body in enumerate(bodies)
    ]


@settings(max_examples=150, deadline=None)
@given(body=TRICKY.filter(is_clean), where=st.floats(0, 1, exclude_max=True), cuts=st.lists(st.integers(0, 300)))
async def test_a_form_that_breaks_off_anywhere_is_invalid(body: bytes, where: float, cuts: list[int]) -> None:
    whole = part('name="metadata"', b"{}") + part('name="file"', body) + end()
    raw = whole[: int(where * (len(whole) - 4))]  # before the two dashes that close it

    with pytest.raises(Invalid):
        await read(raw, cuts)


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300)))
async def test_noise_is_invalid_and_nothing_worse(raw: bytes, cuts: list[int]) -> None:
    with pytest.raises(Invalid):
        await read(raw, cuts)


async def test_a_part_that_nobody_reads_is_passed_over() -> None:
    raw = part('name="a"', b"x" * 1000) + part('name="b"', b"y") + end()
    form = Form(stream(raw, list(range(0, 2000, 7))), BOUNDARY)

    first, second, third = await form.next(), await form.next(), await form.next()

    assert first is not None
    assert second is not None
    assert (first.name, second.name, third) == ("a", "b", None)


@pytest.mark.parametrize(
    ("head", "filename"),
    [
        ('name="file"; filename="ccfraud.onnx"', "ccfraud.onnx"),
        ('name="file"; filename="./models/ccfraud.onnx"', "ccfraud.onnx"),
        ('name="file"; filename="C:\\models\\fraud.onnx"', "fraud.onnx"),
        ('name="file"; filename="../../etc/passwd"', "passwd"),
        ('name="file"; filename="a\\"b.onnx"', 'a"b.onnx'),
        ("name=\"file\"; filename*=utf-8''gef%C3%A4hrlich.onnx", "gefährlich.onnx"),
        ('name="file"; filename="x"; filename*=UTF-8\'\'%E2%82%AC.onnx', "€.onnx"),
        ('name="file"; filename="gefährlich.onnx"', "gefährlich.onnx"),
        (b'name="file"; filename="gef\xe4hrlich.onnx"', "gefährlich.onnx"),
        ("name=file; filename=plain.onnx", "plain.onnx"),
        ('name="file"; filename=""', ""),
        ('name="file"; filename="a;b=c.onnx"', "a;b=c.onnx"),
        ('name="file"; filename="new\x01line.onnx"', "newline.onnx"),
        ('name="file"', None),
    ],
)
async def test_file_names_come_in_many_forms_and_never_with_directories(
    head: str | bytes, filename: str | None
) -> None:
    [(found, _)] = await read(part(head, b"x") + end(), [])

    assert (found.name, found.filename) == ("file", filename)


async def test_a_field_that_is_too_long_is_refused_before_it_is_all_in_memory() -> None:
    form = Form(stream(part('name="metadata"', b"x" * 100_000) + end(), list(range(0, 100_000, 1000))), BOUNDARY)
    await form.next()

    with pytest.raises(TooLarge):
        await form.text(10_000)


async def test_a_header_without_end_is_refused() -> None:
    raw = b"--" + BOUNDARY + b"\r\nContent-Disposition: " + b"x" * 1_000_000

    with pytest.raises(Invalid):
        await read(raw, list(range(0, 1_000_000, 10_000)))


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; boundary="a b;c"', b"a b;c"),
        ("application/json", None),
        ("", None),
        (None, None),
    ],
)
def test_the_boundary_is_found(content_type: str | None, boundary: bytes | None) -> None:
    assert boundary_of(content_type) == boundary


def test_a_form_without_a_boundary_is_invalid() -> None:
    with pytest.raises(Invalid):
        boundary_of("multipart/form-data")


def test_a_boundary_of_absurd_length_is_invalid() -> None:
    with pytest.raises(Invalid):
        Form(stream(b"", []), b"x" * 5000)
