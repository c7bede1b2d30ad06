"""The OpenAPI document that clients are made from, and an API process that cannot load torch."""

import subprocess
import sys
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

WITHOUT_TORCH = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "numpy", "safetensors", "lm_eval"}:
            raise ImportError(f"{name} must not be loaded by the API")

sys.meta_path.insert(0, Forbidden())
from api.app import app
assert "Job" in app.openapi()["components"]["schemas"]
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "transformers", "numpy", "workers"}))
"""


def test_the_api_starts_where_torch_cannot_be_imported() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_document_is_open_and_whole(anonymous: TestClient) -> None:
    document = anonymous.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    known = document["components"]["schemas"]
    for reference in _references(document):
        assert reference.removeprefix("#/components/schemas/") in known, reference


def test_operations_have_names_for_a_client(app: FastAPI) -> None:
    operations = [op for path in app.openapi()["paths"].values() for op in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    assert {"create_job", "list_jobs", "get_job", "cancel_job", "put_zoo", "get_artifact_file"} <= set(names)
    assert all(operation["tags"] and operation["description"] for operation in operations)


def test_bodies_and_answers_are_told_apart_and_complete(app: FastAPI) -> None:
    document = app.openapi()
    schemas = document["components"]["schemas"]
    create = document["paths"]["/v1/jobs"]["post"]
    content = create["requestBody"]["content"]["application/json"]
    assert content["schema"] == {"$ref": "#/components/schemas/JobRequest"}
    assert content["example"]["kind"] == "model_glue"
    assert set(schemas["Job"]["required"]) == set(schemas["Job"]["properties"])
    assert set(schemas["Problem"]["required"]) == set(schemas["Problem"]["properties"])
    assert "application/problem+json" in create["responses"]["422"]["content"]


def test_the_examples_are_valid() -> None:
    from api.openapi import JOB_EXAMPLE, ZOO_EXAMPLE
    from glue.specs.job import JobRequest
    from glue.specs.zoo import ZooSpec

    assert JobRequest.parse(JOB_EXAMPLE).seed == 42
    assert ZooSpec.parse(ZOO_EXAMPLE).member_names() == ("math-a", "code-a")


def _references(value: Any) -> Any:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)
