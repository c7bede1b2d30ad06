"""A zoo: a named list of models, as a user writes it."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from glue.specs.base import Name, Spec

BASE = "base"

# A blank one has nothing to route by.
Prompt = Annotated[str, StringConstraints(pattern=r"\S", max_length=8192)]


class ModelSpec(Spec):
    """Where a model lies: a local folder, or a repository of the Hub as `org/name[@revision]` or with `hf://`."""

    source: str = Field(min_length=1, max_length=4096)


class MemberSpec(ModelSpec):
    """One fine-tuned model of a zoo."""

    name: Name
    domains: tuple[str, ...] = ()
    prompts: tuple[Prompt, ...] = ()


class ZooSpec(Spec):
    """A zoo. `base` is the model that members were fine-tuned from, where it is known."""

    object: Literal["zoo"] = "zoo"
    name: Name
    base: ModelSpec | None = None
    members: tuple[MemberSpec, ...] = Field(min_length=1, max_length=64)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [member.name for member in self.members]
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise ValueError(f"member names must be unique, these are not: {', '.join(doubles)}")
        if BASE in names:
            raise ValueError("the name 'base' is kept for the zoo's base; rename the member")
        return self

    def sources(self) -> dict[str, str]:
        """Entry name to source, the base first under the name `base`."""
        base = {BASE: self.base.source} if self.base else {}
        return base | {member.name: member.source for member in self.members}

    def member_names(self) -> tuple[str, ...]:
        """The members' names in the order of the zoo."""
        return tuple(member.name for member in self.members)
