"""Fixtures of the compiled code's tests."""

from __future__ import annotations

import pytest

from kssm.forecast.native import build, library


@pytest.fixture(scope="module", params=["best", "avx2"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory) -> library.Library:
    """The library of this processor, and the smallest instruction set's where there are more."""
    best = library.load()
    assert best is not None
    if request.param == "best":
        return best
    if library.usable_variants()[0] == "avx2" or "avx2" not in library.usable_variants():
        pytest.skip("there is only one variant for this processor")
    return library.Library(build.compile_variant("avx2", tmp_path_factory.mktemp("native")))
