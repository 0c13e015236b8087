"""No test of this folder leaves a file or socket open."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _nothing_left_open(no_descriptor_left: None) -> None:
    pass
