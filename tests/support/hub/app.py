"""The Hub's interface as the real client calls it: accounts, repositories, commits, LFS, xet; data sets to read."""

import base64
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from tests.support.hub.metadata import metadata_errors
from tests.support.hub.store import ATTRIBUTES, Account, Commit, Entry, HubError, Repository, Store, upload_mode

_CHUNK_BYTES = 256 * 1024
_PAGE = 50
# Data sets are kept under names that begin so.
DATASETS = "datasets/"


class Hub:
    """Answers on behalf of a store; `part_bytes` above 0 makes LFS uploads of larger files go in parts."""

    def __init__(self, store: Store, part_bytes: int = 0) -> None:
        self.store, self.part_bytes = store, part_bytes

    def account(self, request: Request) -> Account | None:
        """Whose token the request carries; none without one."""
        secret = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not secret:
            return None
        account = self.store.accounts.get(secret)
        if account is None or account.expired:
            raise HubError(401, "", "Invalid credentials in Authorization header")
        return account

    def readable(self, request: Request, repo_id: str) -> Repository:
        """The repository, if the request may know of it."""
        account, repository = self.account(request), self.store.repositories.get(repo_id)
        if repository is None or (repository.private and not (account and account.owns(namespace(repo_id)))):
            # What may not be seen is not told apart from what is not there.
            raise HubError(404 if account else 401, "RepoNotFound", "Repository not found")
        return repository

    def open(self, request: Request, repo_id: str) -> Repository:
        """The repository, if the request may read its files."""
        account, repository = self.account(request), self.readable(request, repo_id)
        allowed = account and (account.name in repository.granted or account.owns(namespace(repo_id)))
        if repository.gated and not allowed:
            raise HubError(403 if account else 401, "GatedRepo", f"Access to model {repo_id} is restricted")
        return repository

    def writable(self, request: Request, repo_id: str) -> Repository:
        """The repository, if the request may change it."""
        self.allow_write(request, namespace(repo_id))
        return self.readable(request, repo_id)

    def allow_write(self, request: Request, owner: str) -> Account:
        """The account, if it may write below that namespace."""
        account = self.account(request)
        if account is None:
            raise HubError(401, "", "Invalid username or password.")
        if account.role != "write" or not account.owns(owner):
            raise HubError(403, "", "You don't have the rights to write to this namespace")
        return account


def namespace(repo_id: str) -> str:
    """The owner of a repository."""
    return repo_id.removeprefix(DATASETS).partition("/")[0]


def create_app(hub: Hub) -> FastAPI:
    """All routes of the stand-in."""
    app = FastAPI(openapi_url=None)
    app.add_exception_handler(HubError, _refuse)
    _account_routes(app, hub)
    _repository_routes(app, hub)
    _dataset_routes(app, hub)
    _commit_routes(app, hub)
    _upload_routes(app, hub)
    _xet_routes(app, hub)
    _file_routes(app, hub)
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HubError)
    headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
    return JSONResponse({"error": error.message}, error.status, headers)


def _account_routes(app: FastAPI, hub: Hub) -> None:
    @app.get("/api/whoami-v2")
    async def whoami(request: Request) -> Any:
        account = hub.account(request)
        if account is None:
            raise HubError(401, "", "Invalid username or password.")
        organisations = [{"name": name, "type": "org", "roleInOrg": "write"} for name in account.organisations]
        token = {"accessToken": {"displayName": "test", "role": account.role}}
        return {"name": account.name, "type": "user", "orgs": organisations, "auth": token}

    @app.post("/api/validate-yaml")
    async def validate(request: Request) -> Any:
        errors = metadata_errors((await request.json())["content"])
        body = {"errors": [{"message": message} for message in errors], "warnings": []}
        return JSONResponse(body, 400 if errors else 200)


def _repository_routes(app: FastAPI, hub: Hub) -> None:
    @app.post("/api/repos/create")
    async def create(request: Request) -> Any:
        body = await request.json()
        owner = body.get("organization") or hub.allow_write(request, _self(hub, request)).name
        hub.allow_write(request, owner)
        repo_id = f"{owner}/{body['name']}"
        private = body.get("visibility") == "private" or body.get("private") is True
        url = f"{str(request.base_url).rstrip('/')}/{repo_id}"
        if repo_id in hub.store.repositories:
            return JSONResponse({"error": "You already created this model repo", "url": url}, 409)
        hub.store.create(repo_id, private=private)
        return {"url": url, "name": repo_id, "id": secrets.token_hex(12)}

    @app.delete("/api/repos/delete")
    async def delete(request: Request) -> Any:
        body = await request.json()
        repo_id = f"{body.get('organization') or _self(hub, request)}/{body['name']}"
        hub.writable(request, repo_id)
        del hub.store.repositories[repo_id]
        return {}

    @app.get("/api/models/{owner}/{name}")
    @app.get("/api/models/{owner}/{name}/revision/{revision}")
    async def info(request: Request, owner: str, name: str, revision: str = "main") -> Any:
        repository = hub.readable(request, f"{owner}/{name}")
        return _info(repository, repository.head(revision), "blobs" in request.query_params)

    @app.get("/api/models/{owner}/{name}/refs")
    async def refs(request: Request, owner: str, name: str) -> Any:
        repository = hub.readable(request, f"{owner}/{name}")
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repository.branches.items()]
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repository.tags.items()]
        return {"branches": branches, "tags": tags, "converts": []}

    @app.get("/api/models/{owner}/{name}/tree/{revision}")
    async def tree(request: Request, owner: str, name: str, revision: str, cursor: int = 0) -> Any:
        commit = hub.readable(request, f"{owner}/{name}").head(revision)
        files = [_file(path, entry) for path, entry in sorted(commit.files.items())]
        following = request.url.include_query_params(cursor=cursor + _PAGE)
        headers = {"Link": f'<{following}>; rel="next"'} if len(files) > cursor + _PAGE else {}
        return JSONResponse(files[cursor : cursor + _PAGE], headers=headers)

    @app.post("/api/models/{owner}/{name}/paths-info/{revision}")
    async def paths_info(request: Request, owner: str, name: str, revision: str) -> Any:
        commit = hub.readable(request, f"{owner}/{name}").head(revision)
        if request.headers["content-type"].startswith("application/json"):
            paths = (await request.json())["paths"]
        else:
            paths = parse_qs((await request.body()).decode())["paths"]
        return [_file(path, commit.files[path]) for path in paths if path in commit.files]


def _dataset_routes(app: FastAPI, hub: Hub) -> None:
    @app.get("/api/datasets/{owner}/{name}")
    @app.get("/api/datasets/{owner}/{name}/revision/{revision:path}")
    async def info(request: Request, owner: str, name: str, revision: str = "main") -> Any:
        repository = hub.readable(request, f"{DATASETS}{owner}/{name}")
        return _info(repository, repository.head(revision), "blobs" in request.query_params) | {"id": f"{owner}/{name}"}

    @app.head("/datasets/{owner}/{name}/resolve/{revision}/{path:path}")
    @app.get("/datasets/{owner}/{name}/resolve/{revision}/{path:path}")
    async def resolve(request: Request, owner: str, name: str, revision: str, path: str) -> Any:
        commit = hub.open(request, f"{DATASETS}{owner}/{name}").head(revision)
        entry = commit.files.get(path)
        if entry is None:
            raise HubError(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{entry.oid}"', "Accept-Ranges": "bytes"}
        return _bytes(request, entry.location, headers)


def _commit_routes(app: FastAPI, hub: Hub) -> None:
    @app.get("/api/models/{owner}/{name}/commits/{revision}")
    async def commits(request: Request, owner: str, name: str, revision: str) -> Any:
        repository = hub.readable(request, f"{owner}/{name}")
        return [
            {"id": c.oid, "title": c.title, "message": c.message, "authors": [], "date": _date(c)}
            for c in repository.log(revision)
        ]

    @app.post("/api/models/{owner}/{name}/commit/{revision}")
    async def commit(request: Request, owner: str, name: str, revision: str) -> Any:
        repository = hub.writable(request, f"{owner}/{name}")
        lines = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if revision not in repository.branches:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        head = repository.head(revision)
        if header.get("parentCommit") not in (None, head.oid):
            raise HubError(412, "", "A commit has happened since. Please refresh and try again.")
        files = _changed(hub.store, head.files, lines)
        made = repository.add_commit(revision, files, header["summary"], header.get("description", ""))
        url = f"{str(request.base_url).rstrip('/')}/{repository.id}/commit/{made.oid}"
        return {"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""}

    @app.post("/api/models/{owner}/{name}/branch/{branch}")
    async def create_branch(request: Request, owner: str, name: str, branch: str) -> Any:
        repository = hub.writable(request, f"{owner}/{name}")
        start = (await request.json()).get("startingPoint", "main")
        _add_reference(repository.branches, branch, repository.head(start))
        return {}

    @app.delete("/api/models/{owner}/{name}/branch/{branch}")
    async def delete_branch(request: Request, owner: str, name: str, branch: str) -> Any:
        repository = hub.writable(request, f"{owner}/{name}")
        if branch == "main":
            raise HubError(403, "", "the default branch cannot be deleted")
        if repository.branches.pop(branch, None) is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        return {}

    @app.post("/api/models/{owner}/{name}/tag/{revision}")
    async def create_tag(request: Request, owner: str, name: str, revision: str) -> Any:
        repository = hub.writable(request, f"{owner}/{name}")
        _add_reference(repository.tags, (await request.json())["tag"], repository.head(revision))
        return {}


def _upload_routes(app: FastAPI, hub: Hub) -> None:
    @app.post("/api/models/{owner}/{name}/preupload/{revision}")
    async def preupload(request: Request, owner: str, name: str, revision: str) -> Any:
        present = hub.writable(request, f"{owner}/{name}").head(revision).files
        asked = (await request.json())["files"]
        return {"files": [_preupload(file, present.get(file["path"])) for file in asked]}

    @app.post("/{owner}/{name}.git/info/lfs/objects/batch")
    async def batch(request: Request, owner: str, name: str) -> Any:
        hub.writable(request, f"{owner}/{name}")
        base = str(request.base_url).rstrip("/")
        objects = [_lfs_object(hub, base, each) for each in (await request.json())["objects"]]
        multipart = any("header" in each.get("actions", {}).get("upload", {}) for each in objects)
        body = {"transfer": "multipart" if multipart else "basic", "objects": objects}
        return JSONResponse(body, media_type="application/vnd.git-lfs+json")

    @app.put("/lfs/{oid}")
    async def put(request: Request, oid: str) -> Any:
        await _receive(request, hub.store.blob(oid))
        return Response()

    @app.put("/lfs/{oid}/{number}")
    async def put_part(request: Request, oid: str, number: int) -> Any:
        await _receive(request, hub.store.root / "parts" / f"{oid}.{number}")
        return Response(headers={"ETag": f'"{number}"'})

    @app.post("/lfs/{oid}/complete")
    async def complete(request: Request, oid: str) -> Any:
        partial = hub.store.root / "parts" / oid
        with partial.open("wb") as whole:
            for part in (await request.json())["parts"]:
                whole.write((hub.store.root / "parts" / f"{oid}.{part['partNumber']}").read_bytes())
        partial.replace(hub.store.blob(oid))
        return {}

    @app.post("/lfs/{oid}/verify")
    async def verify(request: Request, oid: str) -> Any:
        path, size = hub.store.blob(oid), (await request.json())["size"]
        if not path.is_file() or path.stat().st_size != size:
            raise HubError(404, "", "the object was not uploaded whole")
        return {}


def _xet_routes(app: FastAPI, hub: Hub) -> None:
    def tokens(request: Request) -> Response:
        # hf_xet stores into a folder itself when the address of its server is one.
        cas, expires = f"local://{hub.store.root / 'cas'}", int(time.time()) + 3600
        names = {"X-Xet-Cas-Url": cas, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(expires)}
        return JSONResponse({"casUrl": cas, "accessToken": "xet", "exp": expires}, headers=names)

    @app.get("/api/models/{owner}/{name}/xet-write-token/{revision}")
    async def write_token(request: Request, owner: str, name: str, revision: str) -> Any:
        hub.writable(request, f"{owner}/{name}").head(revision)
        return tokens(request)

    @app.get("/api/models/{owner}/{name}/xet-read-token/{revision}")
    async def read_token(request: Request, owner: str, name: str, revision: str) -> Any:
        hub.open(request, f"{owner}/{name}").head(revision)
        return tokens(request)


def _file_routes(app: FastAPI, hub: Hub) -> None:
    @app.head("/{owner}/{name}/resolve/{revision}/{path:path}")
    @app.get("/{owner}/{name}/resolve/{revision}/{path:path}")
    async def resolve(request: Request, owner: str, name: str, revision: str, path: str) -> Any:
        repository = hub.open(request, f"{owner}/{name}")
        commit = repository.head(revision)
        entry = commit.files.get(path)
        if entry is None:
            raise HubError(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{entry.oid}"', "Accept-Ranges": "bytes"}
        if entry.sha256 is None:
            return _bytes(request, entry.location, headers)
        base = str(request.base_url).rstrip("/")
        headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        if entry.xet:
            route = f"{base}/api/models/{repository.id}/xet-read-token/{commit.oid}"
            headers |= {"X-Xet-Hash": entry.xet, "X-Xet-Refresh-Route": route}
        # Large files come from another host, under an address that is signed and needs no token.
        elsewhere = base.replace("127.0.0.1", "localhost")
        location = f"{elsewhere}/cdn/{repository.id}/{commit.oid}/{entry.sha256}?name={path.rpartition('/')[2]}"
        return Response(status_code=302, headers=headers | {"Location": location})

    @app.head("/cdn/{owner}/{name}/{oid}/{sha256}")
    @app.get("/cdn/{owner}/{name}/{oid}/{sha256}")
    async def cdn(request: Request, owner: str, name: str, oid: str, sha256: str) -> Any:
        files = hub.store.repository(f"{owner}/{name}").head(oid).files.values()
        entry = next(entry for entry in files if entry.sha256 == sha256)
        return _bytes(request, entry.location, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})


def _self(hub: Hub, request: Request) -> str:
    account = hub.account(request)
    return account.name if account else ""


def _info(repository: Repository, commit: Commit, blobs: bool) -> dict[str, Any]:
    siblings = [
        {"rfilename": path} | (_sibling(entry) if blobs else {}) for path, entry in sorted(commit.files.items())
    ]
    card = _card(commit)
    return {
        "_id": "0", "id": repository.id, "modelId": repository.id, "sha": commit.oid, "private": repository.private,
        "gated": "manual" if repository.gated else False, "disabled": False, "tags": card.get("tags", []),
        "lastModified": _date(commit), "siblings": siblings, "cardData": card,
        "downloads": 0, "likes": 0,
    }  # fmt: skip


def _date(commit: Commit) -> str:
    return commit.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _card(commit: Commit) -> dict[str, Any]:
    entry = commit.files.get("README.md")
    text = entry.location.read_text() if entry else ""
    if not text.startswith("---\n"):
        return {}
    found = yaml.safe_load(text.split("---\n")[1])
    return found if isinstance(found, dict) else {}


def _sibling(entry: Entry) -> dict[str, Any]:
    lfs = {"lfs": {"sha256": entry.sha256, "size": entry.size, "pointerSize": 130}} if entry.sha256 else {}
    return {"size": entry.size, "blobId": entry.oid, **lfs}


def _file(path: str, entry: Entry) -> dict[str, Any]:
    lfs = {"lfs": {"oid": entry.sha256, "size": entry.size, "pointerSize": 130}} if entry.sha256 else {}
    xet = {"xetHash": entry.xet} if entry.xet else {}
    return {"type": "file", "path": path, "oid": entry.oid, "size": entry.size, **lfs, **xet}


def _preupload(file: Mapping[str, Any], present: Entry | None) -> dict[str, Any]:
    mode = upload_mode(file["path"], file["size"])
    oid = (present.sha256 or present.oid) if present else None
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False} | ({"oid": oid} if oid else {})


def _changed(store: Store, files: Mapping[str, Entry], lines: list[dict[str, Any]]) -> dict[str, Entry]:
    changed = dict(files)
    for line in lines:
        value = line["value"]
        match line["key"]:
            case "file":
                changed[value["path"]] = store.regular(base64.b64decode(value["content"]))
            case "lfsFile":
                changed[value["path"]] = store.large(value["oid"])
            case "deletedFile":
                changed.pop(value["path"], None)
            case "deletedFolder":
                changed = {path: entry for path, entry in changed.items() if not path.startswith(value["path"])}
    assert ATTRIBUTES in changed
    return changed


def _add_reference(references: dict[str, str], name: str, commit: Commit) -> None:
    if name in references:
        raise HubError(409, "", f"Reference {name} already exists")
    references[name] = commit.oid


def _lfs_object(hub: Hub, base: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    oid, size = asked["oid"], asked["size"]
    if hub.store.blob(oid).is_file():
        return {"oid": oid, "size": size}
    upload: dict[str, Any] = {"href": f"{base}/lfs/{oid}"}
    if 0 < hub.part_bytes < size:
        parts = -(-size // hub.part_bytes)
        urls = {str(number): f"{base}/lfs/{oid}/{number}" for number in range(1, parts + 1)}
        upload = {"href": f"{base}/lfs/{oid}/complete", "header": {"chunk_size": str(hub.part_bytes), **urls}}
    actions = {"upload": upload, "verify": {"href": f"{base}/lfs/{oid}/verify"}}
    return {"oid": oid, "size": size, "authenticated": True, "actions": actions}


async def _receive(request: Request, target: Path) -> None:
    # Whoever dies half way leaves no object behind.
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
    with partial.open("wb") as file:
        async for chunk in request.stream():
            file.write(chunk)
    partial.replace(target)


def _bytes(request: Request, path: Path, headers: Mapping[str, str]) -> Response:
    """The file, or the range that is asked for."""
    size = path.stat().st_size
    first, last = _range(request.headers.get("range", ""), size)
    if first >= size > 0:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
    status = 206 if "range" in request.headers else 200
    given = {**headers, "Content-Length": str(last - first)}
    if status == 206:
        given["Content-Range"] = f"bytes {first}-{last - 1}/{size}"
    if request.method == "HEAD":
        return Response(status_code=200, headers={**headers, "Content-Length": str(size)})
    return StreamingResponse(_chunks(path, first, last), status, given, "application/octet-stream")


def _range(text: str, size: int) -> tuple[int, int]:
    if not text:
        return 0, size
    first, _, last = text.removeprefix("bytes=").partition("-")
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1 if last else size)


async def _chunks(path: Path, first: int, last: int) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        file.seek(first)
        while first < last:
            chunk = file.read(min(_CHUNK_BYTES, last - first))
            first += len(chunk)
            yield chunk
