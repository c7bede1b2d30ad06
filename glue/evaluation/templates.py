"""The sandbox that every task template is rendered in; knows nothing of tasks."""

from collections.abc import MutableMapping
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval import utils


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """lm-eval's template language in Jinja's sandbox. A template is compiled once, not once an item."""

    def __init__(self) -> None:
        # No loader: a template reads no file and includes no other.
        super().__init__(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        self.filters["regex_replace"] = utils.regex_replace
        self._compiled: dict[str, jinja2.Template] = {}

    def from_string(
        self,
        source: str | jinja2.nodes.Template,
        globals: MutableMapping[str, Any] | None = None,
        template_class: type[jinja2.Template] | None = None,
    ) -> jinja2.Template:
        """The compiled template.

        Raises:
            jinja2.TemplateSyntaxError: it is not a template.
        """
        if not isinstance(source, str) or globals is not None or template_class is not None:
            return super().from_string(source, globals, template_class)
        if source not in self._compiled:
            self._compiled[source] = super().from_string(source)
        return self._compiled[source]


def sandbox_templates() -> None:
    """Put lm-eval's templates into the sandbox, for the whole process.

    lm-eval renders every template in `lm_eval.utils.env`, an ordinary environment, from which a template
    reaches `os` and runs a shell command. This is the one place that replaces it.
    """
    if not isinstance(utils.env, TemplateSandbox):
        utils.env = TemplateSandbox()
