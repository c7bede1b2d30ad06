"""Prefixed ids."""

import re

from glue.records.ids import new_id


def test_ids_sort_in_the_order_of_their_making() -> None:
    ids = [new_id("unit") for _ in range(1000)]

    assert ids == sorted(set(ids))
    assert re.fullmatch(r"unit_[0-9A-Z]{26}", ids[0])
