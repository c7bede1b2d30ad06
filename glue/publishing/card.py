"""The model card: what the model is, its evidence, its recipe, how to load it."""

from typing import Any

from jinja2 import PackageLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

_TEMPLATES = ImmutableSandboxedEnvironment(
    loader=PackageLoader("glue.publishing", "."),
    undefined=StrictUndefined,
    # The card is Markdown, not a page; names are restricted by the specs.
    autoescape=False,
    keep_trailing_newline=True,
)


def model_card(report: dict[str, Any]) -> str:
    """The README.md of an artifact, from its report."""
    members = [row["name"] for row in report["models"] if row["role"] == "member"]
    tasks = [task["task"] for task in report["models"][0]["report"]["tasks"]]
    return _TEMPLATES.get_template("card.md.jinja").render(report | {"members": members, "tasks": tasks})
