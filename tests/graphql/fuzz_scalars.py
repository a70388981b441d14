"""Values for the scalars of our own, loaded by schemathesis as its hooks: keys that exist, that do not, and no keys."""

from __future__ import annotations

import string

import schemathesis
from hypothesis import strategies as st
from schemathesis.graphql import nodes

_SMALL = st.integers(min_value=-3, max_value=40)
_ANY = st.integers(min_value=-(2**70), max_value=2**70)
_WORD = st.text(alphabet=string.printable, max_size=12)
_TIMES = st.datetimes().map(lambda moment: moment.isoformat() + "Z")

for name, values in {
    "bigint": _SMALL.map(nodes.Int) | _ANY.map(nodes.Int) | _WORD.map(nodes.String),
    "float8": st.floats(allow_nan=False, allow_infinity=False).map(nodes.Float) | _ANY.map(nodes.Int),
    "uuid": st.uuids().map(str).map(nodes.String) | _WORD.map(nodes.String),
    "timestamptz": _TIMES.map(nodes.String) | _WORD.map(nodes.String),
    "bpchar": _WORD.map(nodes.String),
    "jsonb": _WORD.map(nodes.String) | _ANY.map(nodes.Int) | st.booleans().map(nodes.Boolean),
    "_text": st.just("{a,b}").map(nodes.String) | _WORD.map(nodes.String),
    "user_type": st.sampled_from(["OWNER", "COLLABORATOR", "else"]).map(nodes.String),
}.items():
    schemathesis.graphql.scalar(name, values)
