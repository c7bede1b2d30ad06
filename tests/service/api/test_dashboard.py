"""The dashboard's pages: open to everybody, because they hold nothing; strict about what they may load."""

import re
from pathlib import Path

from fastapi.testclient import TestClient

from api.dashboard.pages import STATIC

JOB_ID = "job_" + "0" * 26
PAGES = ("/", f"/jobs/{JOB_ID}")


def test_pages_need_no_key_and_hold_no_record(anonymous: TestClient) -> None:
    for path in PAGES:
        answer = anonymous.get(path)
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/html")
        assert 'id="key-form"' in answer.text


def test_pages_load_only_what_lies_here(anonymous: TestClient) -> None:
    for path in PAGES:
        answer = anonymous.get(path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        # What the policy would refuse is not there in the first place.
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|https?://", answer.text)
        for loaded in re.findall(r'(?:src|href)="(/static/[^"]+)"', answer.text):
            assert anonymous.get(loaded).status_code == 200, loaded


def test_a_strange_job_is_no_page(anonymous: TestClient) -> None:
    for name in ("x", "%3Cscript%3E", "job_%22%3E"):
        assert anonymous.get(f"/jobs/{name}").status_code == 404


def test_only_the_static_files_are_served(anonymous: TestClient) -> None:
    for path in ("../pages.py", "%2e%2e/pages.py", "..%2Fpages.py", ""):
        assert anonymous.get(f"/static/{path}").status_code == 404


def test_the_script_shows_data_as_text() -> None:
    script = Path(STATIC / "dashboard.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|localStorage", script)


def test_the_pages_are_not_part_of_the_document(anonymous: TestClient) -> None:
    assert not set(PAGES) & set(anonymous.get("/openapi.json").json()["paths"])
