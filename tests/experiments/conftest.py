"""What makes runs quick in a process that has imported much."""

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def nothing_to_collect():
    """A run collects garbage before it measures memory: what is there by now is not looked at again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
