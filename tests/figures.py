"""The figures that tests note for the page of reliability."""

from __future__ import annotations

from collections.abc import Callable

import pytest

FIGURES = pytest.StashKey[dict[str, list[str]]]()
Figure = Callable[[str, str], None]


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """Note a case's figure: `figure("L1", "1,300 clients: ...")`."""
    figures = request.config.stash.setdefault(FIGURES, {})
    return lambda case, text: figures.setdefault(case, []).append(text)
