"""Where a finished model is pushed to: a repository on the Hub, private unless said otherwise."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from glue.specs.base import Name, Spec

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"

RepositoryId = Annotated[str, StringConstraints(pattern=rf"^{_PART}/{_PART}$")]


class PublishSpec(Spec):
    """The target of a push. `tag` names the published commit; `licence` overrides what follows from the members.

    An existing public repository is refused unless `private` is false: nothing becomes public by surprise.
    """

    repo: RepositoryId
    private: bool = True
    tag: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    licence: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9.-]{0,39}$")

    @model_validator(mode="after")
    def _names_that_the_hub_takes(self) -> Self:
        if ".." in self.repo or "--" in self.repo or self.repo.endswith((".git", ".", "-")):
            raise ValueError("a repository's name has no '..' or '--' and does not end in '.git', '.' or '-'")
        if self.tag == "main":
            raise ValueError("the tag 'main' would hide the branch")
        return self


class PublishRequest(Spec):
    """A job that pushes an artifact which an earlier job made."""

    kind: Literal["publish"]
    artifact: str = Field(pattern="^art_[0-9A-Z]{26}$")
    publish: PublishSpec
    name: Name | None = None
    labels: dict[str, str] = Field(default={}, max_length=16)
    priority: int = Field(default=0, ge=-100, le=100)


class PublishJobSpec(Spec):
    """Its stored form: the artifact by its content. `location` is relative to the artifacts' root."""

    version: Literal[1] = 1
    kind: Literal["publish"]
    seed: int = 0
    artifact: str
    digest: str
    location: str
    publish: PublishSpec


class HubTokenRequest(Spec):
    """A user access token of the Hub; one with the role `write` may publish."""

    token: str = Field(min_length=3, max_length=512, pattern=r"^[\x21-\x7e]+$", repr=False)
