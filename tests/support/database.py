"""Databases for tests: each test gets its own, cloned from a template that was migrated once."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
from sqlalchemy import make_url

from glue.records.schema import upgrade


@contextmanager
def temporary_database(admin_url: str, template: str = "template1") -> Iterator[str]:
    """The address of a database that is a copy of `template` and exists while the block runs."""
    name = f"test_{uuid4().hex}"
    _administer(admin_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield _address(admin_url, name)
    finally:
        _administer(admin_url, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def migrated_template(admin_url: str) -> Iterator[str]:
    """The name of a database at the newest revision, to be copied."""
    with temporary_database(admin_url) as url:
        upgrade(url)
        yield str(make_url(url).database)


def _administer(admin_url: str, statement: str) -> None:
    with psycopg.connect(_address(admin_url, None), autocommit=True) as connection:
        connection.execute(statement)


def _address(admin_url: str, database: str | None) -> str:
    url = make_url(admin_url).set(drivername="postgresql")
    return (url.set(database=database) if database else url).render_as_string(hide_password=False)
