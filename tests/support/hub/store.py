"""What the stand-in for the Hub holds: accounts, repositories, commits, blobs on disk. Knows nothing of HTTP."""

import hashlib
import secrets
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

LFS_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".png", ".model", ".msgpack", ".h5")
LFS_BYTES = 10 * 1024 * 1024
ATTRIBUTES = ".gitattributes"
_MDB_HEADER_BYTES, _MDB_ENTRY_BYTES = 48, 48
_MDB_HAS_VERIFICATION, _MDB_HAS_SHA256 = 0x80000000, 0x40000000
_MDB_END = b"\xff" * 32


class HubError(Exception):
    """A refusal, with the status and the error code that the Hub would send."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class Account:
    """Whose token it is, and what it may do."""

    name: str
    organisations: tuple[str, ...] = ()
    role: str = "write"
    expired: bool = False

    def owns(self, namespace: str) -> bool:
        """Whether repositories of that namespace are the account's."""
        return namespace == self.name or namespace in self.organisations


@dataclass(frozen=True)
class Entry:
    """A file of a commit: where its bytes lie, and by which names the Hub calls them."""

    location: Path
    size: int
    oid: str
    sha256: str | None = None
    xet: str | None = None


@dataclass(frozen=True)
class Commit:
    """A commit with all its files."""

    oid: str
    parent: str | None
    title: str
    message: str
    files: Mapping[str, Entry]
    at: datetime


@dataclass
class Repository:
    """A model repository: commits by oid, branches and tags by name. `granted` may read a gated one."""

    id: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def head(self, revision: str) -> Commit:
        """The commit of a branch, a tag or an oid."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[oid]

    def log(self, revision: str = "main") -> list[Commit]:
        """The commits of a revision, newest first."""
        found, oid = [], self.head(revision).oid
        while oid:
            found.append(self.commits[oid])
            oid = self.commits[oid].parent or ""
        return found

    def add_commit(self, branch: str, files: Mapping[str, Entry], title: str, message: str = "") -> Commit:
        """A commit on top of the branch, which then stands at it."""
        parent = self.branches.get(branch)
        commit = Commit(secrets.token_hex(20), parent, title, message, dict(files), datetime.now(UTC))
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit


class Store:
    """Everything that the stand-in remembers. Blobs lie below `root`, named by their digest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.accounts: dict[str, Account] = {}
        self.repositories: dict[str, Repository] = {}
        for name in ("blobs", "parts", "cas"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def repository(self, repo_id: str) -> Repository:
        """The repository of that id."""
        if repo_id not in self.repositories:
            raise HubError(404, "RepoNotFound", "Repository not found")
        return self.repositories[repo_id]

    def create(self, repo_id: str, *, private: bool = False, gated: bool = False) -> Repository:
        """A new repository, with the first commit that every repository has."""
        if repo_id in self.repositories:
            raise HubError(409, "", "You already created this model repo")
        repository = self.repositories[repo_id] = Repository(repo_id, private, gated)
        attributes = self.regular("".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LFS_SUFFIXES))
        repository.add_commit("main", {ATTRIBUTES: attributes}, "initial commit")
        return repository

    def add_folder(self, repo_id: str, folder: Path, *, private: bool = False, gated: bool = False) -> str:
        """Publish a local folder as a repository; the oid of its commit. Files are linked, so sparse ones stay so."""
        repository = self.repositories.get(repo_id) or self.create(repo_id, private=private, gated=gated)
        files = dict(repository.head("main").files)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            files[path.relative_to(folder).as_posix()] = self._entry(path)
        return repository.add_commit("main", files, "upload").oid

    def _entry(self, path: Path) -> Entry:
        if upload_mode(path.name, path.stat().st_size) == "regular":
            return self.regular(path.read_bytes())
        # A file with holes stands for weights that nobody reads: its digest is made up, and costs nothing.
        is_sparse = path.stat().st_blocks * 512 < path.stat().st_size // 2
        sha256 = hashlib.sha256(str(path).encode()).hexdigest() if is_sparse else _sha256(path)
        return Entry(path, path.stat().st_size, pointer_oid(sha256, path.stat().st_size), sha256)

    def regular(self, content: str | bytes) -> Entry:
        """A file that lies in git itself."""
        content = content.encode() if isinstance(content, str) else content
        oid = blob_oid(content)
        location = self.root / "blobs" / oid
        location.write_bytes(content)
        return Entry(location, len(content), oid)

    def blob(self, sha256: str) -> Path:
        """Where the bytes of an LFS object lie, or will."""
        return self.root / "blobs" / sha256

    def large(self, sha256: str) -> Entry:
        """A file whose bytes were uploaded before, by LFS or by xet.

        Raises:
            HubError: they were not.
        """
        xet = self.xet_hashes().get(sha256)
        path = self.blob(sha256)
        if xet is not None and not path.is_file():
            _materialise(self.root / "cas", xet, path)
        if not path.is_file():
            raise HubError(400, "", f"LFS object {sha256} was not uploaded")
        size = path.stat().st_size
        return Entry(path, size, pointer_oid(sha256, size), sha256, xet[0] if xet else None)

    def xet_hashes(self) -> dict[str, tuple[str, int]]:
        """sha256 to xet hash and size of everything that the real xet client stored in the CAS folder."""
        shards = (self.root / "cas").glob("**/shards/*.mdb")
        return {sha256: (xet, size) for shard in shards for sha256, xet, size in _shard_files(shard.read_bytes())}


def upload_mode(path: str, size: int) -> str:
    """How a file of that name and size is to be uploaded."""
    return "lfs" if path.endswith(LFS_SUFFIXES) or size > LFS_BYTES else "regular"


def blob_oid(content: bytes) -> str:
    """git's name for a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer_oid(sha256: str, size: int) -> str:
    """git's name for the pointer that stands for an LFS object."""
    return blob_oid(f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shard_files(shard: bytes) -> Iterator[tuple[str, str, int]]:
    """sha256, xet hash and size of every file that a shard describes: 48 bytes of header, then the files."""
    position = _MDB_HEADER_BYTES
    while position + _MDB_ENTRY_BYTES <= len(shard):
        name, flags, count = shard[position : position + 32], *struct.unpack_from("<II", shard, position + 32)
        if name == _MDB_END:
            return
        position += _MDB_ENTRY_BYTES
        segments = range(position, position + count * _MDB_ENTRY_BYTES, _MDB_ENTRY_BYTES)
        # A segment: hash of the xorb, flags, unpacked bytes, first and last chunk.
        size = sum(struct.unpack_from("<I", shard, segment + 36)[0] for segment in segments)
        position += count * _MDB_ENTRY_BYTES * (2 if flags & _MDB_HAS_VERIFICATION else 1)
        if flags & _MDB_HAS_SHA256:
            yield _printed(shard[position : position + 32]), _printed(name), size
            position += _MDB_ENTRY_BYTES


def _printed(digest: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", digest))


def _materialise(cas: Path, xet: tuple[str, int], target: Path) -> None:
    """Write a file that the xet client stored, by the xet client: the bridge by which plain HTTP reads it."""
    from hf_xet import XetFileInfo, XetSession

    # The client that stores there keeps its index locked, so a copy is read.
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(cas, copy, dirs_exist_ok=True)
        with XetSession().new_file_download_group(endpoint=f"local://{copy}") as group:
            group.start_download_file(XetFileInfo(*xet), str(target))
