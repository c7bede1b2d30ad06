from collections.abc import Iterator

import pytest

from tests.support.quiet import one_thread


@pytest.fixture(autouse=True, scope="session")
def quiet() -> Iterator[None]:
    with one_thread():
        yield
