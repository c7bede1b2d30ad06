"""A model as a file names it: a folder, a folder with an adapter, or a merge that is never stored. Knows no tensor."""

from collections.abc import Iterator
from typing import Any, Self

from pydantic import model_validator

from glue.merging.mergekit_yaml import MergekitFile, ModelReference
from glue.specs.base import Spec


class ModelSource(Spec):
    """`folder`, `folder+adapter`, `{model: folder, lora: adapter}` or `{merge: …}` with a merge file's content."""

    model: str | None = None
    lora: str | None = None
    merge: MergekitFile | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_merge_files_write_it(cls, value: Any) -> Any:
        if isinstance(value, dict) and "merge" in value:
            return value
        reference = ModelReference.model_validate(value)
        return {"model": reference.model, "lora": reference.lora}

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.model is None) == (self.merge is None):
            raise ValueError("give a model's folder, or merge with the content of a merge file")
        if self.merge is not None and self.lora is not None:
            raise ValueError("an adapter belongs to a folder: put it inside the merge")
        return self

    @property
    def reference(self) -> ModelReference | None:
        """The folder that is named; none for a merge."""
        return None if self.model is None else ModelReference(model=self.model, lora=self.lora)

    def references(self) -> Iterator[ModelReference]:
        """Every folder that it stands on."""
        if self.merge is not None:
            yield from self.merge.references()
        elif self.reference is not None:
            yield self.reference
