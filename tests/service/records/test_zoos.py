"""Stored zoos."""

import pytest

from glue.records.database import Database
from glue.records.errors import NotFoundError
from glue.records.jobs import get_job
from glue.records.zoos import delete_zoo, get_zoo, list_zoos, put_zoo
from glue.specs.zoo import ZooSpec
from tests.support.chains import OWNER, submit


def zoo_spec(name: str, member: str = "one") -> ZooSpec:
    return ZooSpec.parse({"name": name, "members": [{"name": member, "source": f"/models/{member}"}]})


def test_a_zoo_is_stored_once_under_its_name(watched: Database) -> None:
    with watched.transaction() as session:
        first, created = put_zoo(session, OWNER, zoo_spec("small"))
    with watched.transaction() as session:
        second, created_again = put_zoo(session, OWNER, zoo_spec("small", "two"))
        foreign, created_elsewhere = put_zoo(session, "eve", zoo_spec("small"))

    assert (created, created_again, created_elsewhere) == (True, False, True)
    assert first.id == second.id != foreign.id
    assert second.spec == zoo_spec("small", "two").as_json()
    assert second.digest != first.digest
    assert second.updated_at > first.updated_at
    assert second.created_at == first.created_at


def test_a_zoo_is_found_by_id_or_name_by_its_owner(watched: Database) -> None:
    with watched.transaction() as session:
        zoo, _ = put_zoo(session, OWNER, zoo_spec("small"))
        # A name that is another zoo's id must not hide that zoo.
        put_zoo(session, OWNER, zoo_spec(zoo.id))

        assert get_zoo(session, OWNER, zoo.id).name == "small"
        assert get_zoo(session, OWNER, "small").id == zoo.id
        with pytest.raises(NotFoundError):
            get_zoo(session, "eve", zoo.id)


def test_zoos_are_listed_newest_first(watched: Database) -> None:
    with watched.transaction() as session:
        ids = [put_zoo(session, OWNER, zoo_spec(f"zoo{number}"))[0].id for number in range(3)]
        first = list_zoos(session, OWNER, limit=2)
        second = list_zoos(session, OWNER, after=first[-1].id, limit=2)

    assert [zoo.id for zoo in first + second] == ids[::-1]


def test_a_deleted_zoo_leaves_its_jobs(watched: Database) -> None:
    with watched.transaction() as session:
        zoo, _ = put_zoo(session, OWNER, zoo_spec("small"))
    job_id = submit(watched, zoo_id=zoo.id)

    with watched.transaction() as session:
        with pytest.raises(NotFoundError):
            delete_zoo(session, "eve", "small")
        delete_zoo(session, OWNER, "small")

    with watched.transaction() as session:
        assert get_job(session, OWNER, job_id).zoo_id is None
        with pytest.raises(NotFoundError):
            get_zoo(session, OWNER, "small")
