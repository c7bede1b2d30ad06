"""A job that scores in bfloat16 says in its report how many items that decides."""

import json
from pathlib import Path

from tests.support.in_process import InProcess
from tests.support.tiny_zoo import build_tiny_zoo, job_request, job_spec


def test_the_report_counts_items_that_come_out_otherwise(tmp_path: Path) -> None:
    zoo = build_tiny_zoo(tmp_path / "zoo")
    suites = {name: job_request(zoo)[name] | {"dtype": "bfloat16"} for name in ("proxy", "report")}
    run = InProcess(job_spec(zoo, **suites), tmp_path / "home")
    result = run.run()
    report = json.loads((tmp_path / "home" / "artifacts" / result["location"] / "report.json").read_text())
    shares = [row["report"]["differing_in_float32"] for row in report["models"]]
    assert all(0 <= share <= 1 for share in shares)
    assert "differing_in_float32" not in report["models"][0]["proxy"]
    assert any(warning.startswith("Scored in bfloat16: ") for warning in report["warnings"])
