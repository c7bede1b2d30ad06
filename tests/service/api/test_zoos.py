"""Zoos over HTTP: stored under a name, replaced, listed, forgotten."""

from pathlib import Path

from fastapi.testclient import TestClient

from tests.support.service_api import write_zoo


def test_a_zoo_is_created_then_replaced(client: TestClient, root: Path) -> None:
    request = write_zoo(root)
    created = client.post("/v1/zoos", json=request)
    assert created.status_code == 201
    zoo = created.json()
    assert created.headers["Location"] == f"/v1/zoos/{zoo['id']}"
    assert zoo["object"] == "zoo"
    assert zoo["spec"]["base"] is None
    replaced = client.post("/v1/zoos", json=request | {"members": request["members"][:1]})
    assert replaced.status_code == 200
    assert replaced.json()["id"] == zoo["id"]
    assert replaced.json()["digest"] != zoo["digest"]
    assert client.get(created.headers["Location"]).json() == replaced.json() == client.get("/v1/zoos/small").json()


def test_every_mistake_has_its_place(client: TestClient, root: Path) -> None:
    request = write_zoo(root)
    request["members"][1]["source"] = "/etc"
    (root / "a" / "model.safetensors").unlink()
    answer = client.post("/v1/zoos", json=request)
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    found = {error["pointer"]: error["code"] for error in answer.json()["errors"]}
    assert found == {"/members/0/source": "no_weights", "/members/1/source": "outside_roots"}
    assert all(error["fix"] for error in answer.json()["errors"])


def test_an_unknown_key_is_named_with_its_neighbour(client: TestClient, root: Path) -> None:
    answer = client.post("/v1/zoos", json=write_zoo(root) | {"memberz": []})
    assert answer.json()["errors"] == [
        {
            "pointer": "/memberz",
            "code": "unknown_key",
            "detail": "unknown key 'memberz'",
            "fix": "did you mean 'members'?",
        }
    ]


def test_a_zoo_is_forgotten(client: TestClient, root: Path) -> None:
    client.post("/v1/zoos", json=write_zoo(root))
    assert client.delete("/v1/zoos/small").status_code == 204
    assert client.delete("/v1/zoos/small").status_code == 404
    assert client.get("/v1/zoos/small").json()["code"] == "not_found"


def test_strange_names_are_not_found(client: TestClient) -> None:
    for name in ("%00", "a%00b", "%F0%9F%92%A9", "x" * 500, "..", "zoo_01J%0A"):
        assert client.get(f"/v1/zoos/{name}").status_code == 404, name


def test_pages(client: TestClient, root: Path) -> None:
    request = write_zoo(root)
    for number in range(5):
        client.post("/v1/zoos", json=request | {"name": f"z{number}"})
    names, after = [], None
    while True:
        page = client.get("/v1/zoos", params={"limit": 2} | ({"after": after} if after else {})).json()
        names += [zoo["name"] for zoo in page["data"]]
        after = page["next_cursor"]
        if not page["has_more"]:
            break
    assert names == ["z4", "z3", "z2", "z1", "z0"]
    assert after is None


def test_yaml_bodies(client: TestClient, root: Path) -> None:
    write_zoo(root)
    body = f"name: small\nmembers:\n  - {{name: a, source: {root}/a}}\n"
    answer = client.post("/v1/zoos", content=body, headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 201
