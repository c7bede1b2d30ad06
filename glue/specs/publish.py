"""Where a finished model is pushed to: a repository on the Hub, private unless said otherwise."""

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from glue.specs.base import Spec

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
