"""Licences of inputs: what follows for the result, and when a person has to look."""

import pytest

from glue.references.licences import combine


@pytest.mark.parametrize(
    ("licences", "identifier"),
    [
        (["mit", "mit"], "mit"),
        (["mit", "apache-2.0"], "apache-2.0"),
        (["llama2", "apache-2.0", "mit"], "llama2"),
        (["gpl-3.0", "mit"], "gpl-3.0"),
        (["cc-by-nc-4.0", "mit"], "cc-by-nc-4.0"),
        (["llama2", None], "other"),
        ([None, None], "other"),
        (["llama2", "cc-by-nc-4.0"], "other"),
    ],
)
def test_the_strongest_terms_are_kept(licences: list[str | None], identifier: str) -> None:
    assert combine({f"m{n}": licence for n, licence in enumerate(licences)}).identifier == identifier


@pytest.mark.parametrize(
    "licences",
    [
        ["llama2", "llama3"],
        ["gpl-3.0", "llama2"],
        ["gpl-2.0", "gpl-3.0"],
        ["agpl-3.0", "cc-by-nc-4.0"],
        ["cc-by-nc-nd-4.0", "mit"],
        ["gemma", "llama3.1"],
        ["cc-by-sa-4.0", "gpl-3.0"],
    ],
)
def test_conflicts(licences: list[str]) -> None:
    assert combine({f"m{n}": licence for n, licence in enumerate(licences)}).conflicts


@pytest.mark.parametrize("licences", [["mit", "apache-2.0"], ["llama2", "mit"], ["gpl-3.0", "agpl-3.0"], [None]])
def test_no_conflict(licences: list[str | None]) -> None:
    assert not combine({f"m{n}": licence for n, licence in enumerate(licences)}).conflicts


def test_what_a_person_has_to_read() -> None:
    notes = combine({"a": None, "b": "my-own", "c": "cc-by-nc-4.0"}).notes
    assert [word in note for word, note in zip(("of a", "my-own of b", "commercially"), notes, strict=True)] == [
        True
    ] * 3
