"""A finished folder to a repository on the Hub: whole, once, and whatever breaks on the way, main is whole too.

Everything is uploaded to a branch and compared with the manifest there; one commit then moves it to main, on
condition that main is still where it was looked at. The commit carries a mark by which a later attempt knows that
it was made, so that a repetition after any crash finds it and adds nothing.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from glue.checkpoints.manifest import MANIFEST_FILE, Manifest, file_sha256
from glue.references.hub_access import HubUnavailableError, Say, patiently, refusals_of
from glue.references.hub_target import check_tag, check_visibility
from glue.specs.errors import InvalidInputError
from glue.specs.publish import PublishSpec

MAIN = "main"
ATTRIBUTES = ".gitattributes"
# Above it a file of which the Hub tells only git's name would be too much to read into memory.
_SMALL_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Published:
    """Where the model lies now: the commit on main that holds it."""

    repo: str
    commit: str
    tag: str | None
    url: str


def push(folder: Path, manifest: Manifest, target: PublishSpec, *, mark: str, api: HfApi, say: Say) -> Published:
    """Publish the folder; `mark` names this publication and no other. To be repeated after any failure.

    Raises:
        InvalidInputError: the repository is public, the tag is taken, or a right is missing.
        HubUnavailableError: the Hub did not answer often enough; main holds the whole model or is as it was.
        HubConflictError: somebody else published there at the same time; nothing was changed.
    """
    try:
        return patiently(lambda: _Push(folder, manifest, target, mark, api, say).run(), lambda line: say(0.0, line))
    except InvalidInputError as error:
        problems = [replace(problem, pointer=f"/publish{problem.pointer}") for problem in error.problems]
        raise InvalidInputError(error.detail, problems) from None


class _Push:
    """One attempt, from the repository's creation to its tag."""

    def __init__(self, folder: Path, manifest: Manifest, target: PublishSpec, mark: str, api: HfApi, say: Say) -> None:
        self._folder, self._target, self._api, self._say = folder, target, api, say
        self._repo, self._mark = target.repo, mark
        self._branch = f"glue-{hashlib.sha256(mark.encode()).hexdigest()[:16]}"
        names = {entry.path: entry.sha256 for entry in manifest.files}
        self._expected = names | {MANIFEST_FILE: file_sha256(folder / MANIFEST_FILE)}
        self._summary = f"Model-GLUE {manifest.digest[:12]}"

    def run(self) -> Published:
        with refusals_of(self._repo):
            self._say(0.0, f"opening {self._repo}")
            self._open()
            commit, head = self._made_before()
            if commit is None and self._differs(head) is None:
                commit = head
            self._check_tag(commit)
            if commit is None:
                commit = self._publish(head)
            self._say(0.95, "tag")
            self._tag(commit)
            with suppress(Exception):
                # Only tidiness: a branch that stays behind is used by the next attempt, or harms nobody.
                self._api.delete_branch(self._repo, branch=self._branch)
        url = f"{self._api.endpoint}/{self._repo}/tree/{self._target.tag or commit}"
        return Published(self._repo, commit, self._target.tag, url)

    def _open(self) -> None:
        """Create the repository, or see that the one that is there is no more public than was asked for."""
        try:
            info = self._api.model_info(self._repo)
        except RepositoryNotFoundError:
            self._api.create_repo(self._repo, private=self._target.private, exist_ok=True)
            info = self._api.model_info(self._repo)
        check_visibility(self._target, bool(info.private))

    def _made_before(self) -> tuple[str | None, str]:
        """The commit that an earlier attempt made, if there is one, and the head of main."""
        commits = self._api.list_repo_commits(self._repo, revision=MAIN)
        made = [commit.commit_id for commit in commits if self._mark in f"{commit.title}\n{commit.message}"]
        return (made[0] if made else None), commits[0].commit_id

    def _publish(self, head: str) -> str:
        self._say(0.05, "upload")
        self._api.create_branch(self._repo, branch=self._branch, revision=head, exist_ok=True)
        self._upload()
        self._say(0.8, "comparing what arrived with the manifest")
        arrived = self._api.model_info(self._repo, revision=self._branch).sha
        assert arrived is not None
        wrong = self._differs(arrived)
        if wrong is not None:
            self._api.delete_branch(self._repo, branch=self._branch)
            raise HubUnavailableError(f"{self._repo}: {wrong} did not arrive as it was sent")
        self._say(0.9, "main")
        try:
            made = self._api.create_commit(
                self._repo,
                self._operations(head, arrived),
                commit_message=self._summary,
                commit_description=self._mark,
                revision=MAIN,
                parent_commit=head,
            )
        except Exception:
            # The answer may be lost where the commit was made, and then the client's own repetition is refused.
            found, _ = self._made_before()
            if found is None:
                raise
            return found
        return str(made.oid)

    def _upload(self) -> None:
        try:
            self._api.upload_folder(
                repo_id=self._repo,
                folder_path=self._folder,
                revision=self._branch,
                commit_message=f"{self._summary}: upload",
                delete_patterns=["*"],
            )
        except (RuntimeError, ConnectionError) as error:
            # What the storage behind the Hub says has no class of its own.
            raise HubUnavailableError(f"{self._repo}: the upload broke off ({error})"[:500]) from None

    def _operations(self, head: str, arrived: str) -> list[Any]:
        present = {file.path for file in self._files(head)} - {ATTRIBUTES}
        copies = [CommitOperationCopy(path, path, src_revision=arrived) for path in self._expected]
        return [*copies, *(CommitOperationDelete(path) for path in sorted(present - self._expected.keys()))]

    def _differs(self, revision: str) -> str | None:
        """The first path at which a revision differs from the manifest; none where they agree."""
        files = {file.path: file for file in self._files(revision) if file.path != ATTRIBUTES}
        strange = sorted(files.keys() ^ self._expected.keys())
        if strange:
            return strange[0]
        return next((path for path in sorted(files) if not self._same(files[path])), None)

    def _same(self, file: RepoFile) -> bool:
        if file.lfs is not None:
            return file.lfs.sha256 == self._expected[file.path]
        path = self._folder / file.path
        return file.size == path.stat().st_size <= _SMALL_BYTES and file.blob_id == git_name(path.read_bytes())

    def _files(self, revision: str) -> list[RepoFile]:
        tree = self._api.list_repo_tree(self._repo, revision=revision, recursive=True)
        return [file for file in tree if isinstance(file, RepoFile)]

    def _check_tag(self, commit: str | None) -> bool:
        """Whether the tag is there already; on another commit it is somebody else's."""
        if self._target.tag is None:
            return True
        tags = {tag.name: tag.target_commit for tag in self._api.list_repo_refs(self._repo).tags}
        return check_tag(self._target, tags, commit)

    def _tag(self, commit: str) -> None:
        if not self._check_tag(commit):
            assert self._target.tag is not None
            self._api.create_tag(self._repo, tag=self._target.tag, revision=commit, exist_ok=True)
            self._check_tag(commit)


def git_name(content: bytes) -> str:
    """git's name for a file: sha1 of its bytes behind a header."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
