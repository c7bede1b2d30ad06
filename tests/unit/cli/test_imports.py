import gc

import pytest

from glue.cli.imports import quickly


def test_nothing_is_collected_during_the_imports_and_all_is_as_before_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    with quickly("a library that is not there"):
        assert not gc.isenabled()
    assert gc.isenabled()
    assert frozen == [False]


def test_a_library_that_is_there_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "freeze", lambda: pytest.fail("frozen"))
    with quickly("pytest"):
        assert gc.isenabled()


def test_a_failing_import_leaves_the_collector_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "freeze", lambda: None)
    with pytest.raises(ImportError), quickly("a library that is not there"):
        raise ImportError
    assert gc.isenabled()
