"""The model card: what the model is, its evidence, its recipe, how to load and serve it, and metadata for the Hub."""

from typing import Any

import yaml
from jinja2 import PackageLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from glue.specs.expression import parse_expression
from glue.specs.recipes import mergekit_recipe

# What the Hub knows as a licence; anything else it wants as `other`, with a name.
HUB_LICENCES = frozenset({
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bigcode-openrail-m", "bigscience-bloom-rail-1.0",
    "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "cc0-1.0",
    "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "creativeml-openrail-m", "gemma", "gpl",
    "gpl-2.0", "gpl-3.0", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "llama2", "llama3", "llama3.1", "llama3.2",
    "llama3.3", "llama4", "mit", "openrail", "unlicense", "zlib",
})  # fmt: skip
NO_NAME = "FOLDER"

TEMPLATES = ImmutableSandboxedEnvironment(
    loader=PackageLoader("glue.publishing", "."),
    undefined=StrictUndefined,
    # The card is Markdown, not a page; names are restricted by the specs.
    autoescape=False,
    keep_trailing_newline=True,
)


def model_card(report: dict[str, Any]) -> str:
    """The README.md of an artifact, from its report."""
    members = [row["name"] for row in report["models"] if row["role"] == "member"]
    return TEMPLATES.get_template("card.md.jinja").render(
        report
        | {
            "metadata": yaml_text(metadata(report)),
            "members": members,
            "tasks": [task["task"] for task in report["models"][0]["report"]["tasks"]],
            "place": report["repository"] or NO_NAME,
            "custom": _is_custom(report),
            "router": report["job"]["job"]["mixture"],
            "recipe": yaml_text(report["job"]),
            "mergekit": _mergekit(report),
        }
    )


def metadata(report: dict[str, Any]) -> dict[str, Any]:
    """The YAML block of the card, in the Hub's terms."""
    experts = ["mixture-of-experts"] if report["mixture"]["experts"] else []
    tags = ["model-glue", "merge", *experts, *(["custom_code"] if _is_custom(report) else [])]
    found: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": tags}
    found |= licence_metadata(report)
    repositories = [part["repository"] for part in parts_of(report) if part["repository"]]
    if repositories:
        found |= {"base_model": list(dict.fromkeys(repositories)), "base_model_relation": "merge"}
    artifact = next(row for row in report["models"] if row["name"] == report["artifact"])
    name = (report["repository"] or report["zoo"]).rpartition("/")[2]
    results = [result_metadata(task) for task in artifact["report"]["tasks"]]
    return found | {"model-index": [{"name": name, "results": results}]}


def _is_custom(report: dict[str, Any]) -> bool:
    """Whether a modelling file of ours lies in the folder."""
    return bool(report["mixture"]["experts"]) and not report["mixture"].get("stock", False)


def licence_metadata(report: dict[str, Any]) -> dict[str, str]:
    """The licence of a report in the Hub's terms; nothing where no input names one."""
    identifier = report["licence"]["identifier"]
    if identifier in HUB_LICENCES:
        return {"license": identifier}
    if all(part["licence"] is None for part in parts_of(report)) and not report["licence"]["chosen"]:
        return {}
    return {"license": "other", "license_name": "see-inputs" if identifier == "other" else identifier}


def result_metadata(task: dict[str, Any]) -> dict[str, Any]:
    """A task's score in the Hub's terms."""
    metric = {"type": task["metric"], "name": task["metric"], "value": round(100 * task["mean"], 4)}
    stderr = {"type": "stderr", "name": f"{task['metric']} stderr", "value": round(100 * task["stderr"], 4)}
    return {
        "task": {"type": "text-generation", "name": "Text Generation"},
        "dataset": {"name": task["task"], "type": task["task"]},
        "metrics": [metric, stderr],
    }


def _mergekit(report: dict[str, Any]) -> list[dict[str, str | None]]:
    """What mergekit would be told for each family's merge, where its words suffice."""
    sources = {model["name"]: _source(model) for model in report["inputs"]}
    dtype = report["job"]["job"]["output"]["dtype"]
    found = []
    for family in report["families"]:
        recipe = mergekit_recipe(parse_expression(family["recipe"]), sources, dtype)
        found.append({"family": family["name"], "text": yaml_text(recipe) if recipe is not None else None})
    return found


def parts_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The inputs, and behind each the adapter on it."""
    return [part for model in report["inputs"] for part in (model, model.get("adapter")) if part is not None]


def _source(model: dict[str, Any]) -> str:
    if "adapter" not in model:
        return str(model["repository"] or model["name"])
    return f"{model['repository'] or 'MODEL'}+{model['adapter']['repository'] or model['name']}"


def yaml_text(value: Any) -> str:
    """Plain data as YAML, without the last line break."""
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110)
    return text.rstrip("\n")
