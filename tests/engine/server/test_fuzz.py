from __future__ import annotations

import pytest

from tests.engine.server import fuzz


@pytest.mark.server
@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_seconds_of_malformed_input_leave_the_engine_as_it_was(target: str) -> None:
    statuses = fuzz.run(2.0, [target], seed=1)

    assert statuses
    assert 500 not in statuses
