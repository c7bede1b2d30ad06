"""Whether an owner may publish where they want to: asked at submission, long before there is anything to push."""

from typing import Any

from huggingface_hub.errors import RepositoryNotFoundError

from glue.references.findings import Findings
from glue.references.hub_access import HubAccess, patiently, refusals_of
from glue.specs.errors import InvalidInputError, Problem
from glue.specs.publish import PublishSpec

WRITING_ROLES = ("write", "admin", "fineGrained")


def check_target(target: PublishSpec, access: HubAccess, findings: Findings) -> None:
    """Token, right to write, visibility and tag of the target; what is wrong goes to `findings`.

    Raises:
        HubUnavailableError: the Hub does not answer.
    """
    with findings.at("/publish", "publish"):
        if access.token is None:
            detail = "publishing needs a token of yours, and you have stored none"
            raise _invalid("/repo", "no_hub_token", detail, "store one with `glue hub-token set` or PUT /v1/hub-token")
        with findings.at("/publish", "publish"):
            _check_rights(target, account_of(access))
        patiently(lambda: _check_repository(target, access))


def account_of(access: HubAccess) -> dict[str, Any]:
    """What the Hub says of the token: its account's `name`, `organisations` and its `role`.

    Raises:
        InvalidInputError: the Hub does not know the token.
        HubUnavailableError: the Hub does not answer.
    """

    def ask() -> Any:
        with refusals_of("your token"):
            return access.api().whoami()

    told = patiently(ask)
    role = told.get("auth", {}).get("accessToken", {}).get("role", "")
    organisations = [organisation["name"] for organisation in told.get("orgs", [])]
    return {"name": told["name"], "organisations": organisations, "role": role}


def check_visibility(target: PublishSpec, is_private: bool) -> None:
    """A private push must not land in a public repository.

    Raises:
        InvalidInputError: it would.
    """
    if target.private and not is_private:
        detail = f"{target.repo} is public, and the model is to be private"
        fix = "choose a new name, make the repository private, or set private: false"
        raise _invalid("/private", "public_repository", detail, fix)


def check_tag(target: PublishSpec, tags: dict[str, str], commit: str | None) -> bool:
    """Whether the tag is there already, on `commit`.

    Raises:
        InvalidInputError: it is there on another commit, and tags do not move.
    """
    found = tags.get(target.tag or "")
    if found not in (None, commit):
        detail = f"{target.repo} has the tag {target.tag} already, on another commit"
        raise _invalid("/tag", "tag_taken", detail, "choose a new tag")
    return found is not None


def _check_rights(target: PublishSpec, account: dict[str, Any]) -> None:
    owner = target.repo.partition("/")[0]
    if owner not in (account["name"], *account["organisations"]):
        names = ", ".join([account["name"], *account["organisations"]])
        detail = f"your token belongs to {account['name']} and cannot write below {owner}"
        raise _invalid("/repo", "no_right", detail, f"choose a repository below one of: {names}")
    if account["role"] not in WRITING_ROLES:
        detail = f"your token may only {account['role'] or 'read'}"
        raise _invalid("/repo", "no_right", detail, "store a token with the right to write")


def _check_repository(target: PublishSpec, access: HubAccess) -> None:
    with refusals_of(target.repo):
        try:
            info = access.api().model_info(target.repo)
        except RepositoryNotFoundError:
            return
        check_visibility(target, bool(info.private))
        if target.tag is not None:
            tags = {tag.name: tag.target_commit for tag in access.api().list_repo_refs(target.repo).tags}
            check_tag(target, tags, None)


def _invalid(pointer: str, code: str, detail: str, fix: str) -> InvalidInputError:
    return InvalidInputError(f"{detail}; {fix}", [Problem(pointer, code, detail, fix)])
