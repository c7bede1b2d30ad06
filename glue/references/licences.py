"""What the members' licences say of a model made from them. A reading aid for people, not legal advice. Pure.

Identifiers are the Hub's. Of each it is known whether it forbids commerce, whether changed copies must keep it,
and which others it can be combined with.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import yaml

from glue.specs.base import MAX_SPEC_BYTES

# fmt: off
PERMISSIVE = frozenset({
    "apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "cc0-1.0", "unlicense", "isc",
    "zlib", "afl-3.0", "artistic-2.0", "bsl-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0",
})
# A changed copy must be passed on under the same terms.
KEPT = frozenset({
    "gpl", "gpl-2.0", "gpl-3.0", "agpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
})
# Terms of one family of models; they go along with every derivative, and forbid some uses.
COMMUNITY = frozenset({"llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma"})
# fmt: on
_NO_COMMERCE = re.compile(r"(^|-)nc(-|$)")
_NO_CHANGES = re.compile(r"(^|-)nd(-|$)")


class _Stated(Protocol):
    @property
    def licence(self) -> str | None: ...


class _Licensed(_Stated, Protocol):
    @property
    def name(self) -> str: ...
    @property
    def adapter(self) -> _Stated | None: ...


@dataclass(frozen=True)
class CombinedLicence:
    """The identifier for the result, with what speaks against it: `conflicts` forbid it, `notes` are to be read."""

    identifier: str
    conflicts: tuple[str, ...]
    notes: tuple[str, ...]


def combine(licences: Mapping[str, str | None]) -> CombinedLicence:
    """The licence of a model made from members with these licences, by name."""
    known = {name: licence for name, licence in licences.items() if licence}
    distinct = sorted(set(known.values()))
    notes = [*_unknown(licences), *_unjudged(known)]
    if any(_NO_COMMERCE.search(licence) for licence in distinct) and len(distinct) > 1:
        names = _names(known, lambda licence: bool(_NO_COMMERCE.search(licence)))
        notes.append(f"the result must not be used commercially, because of {names}")
    return CombinedLicence(_identifier(licences, distinct), tuple(_conflicts(known, distinct)), tuple(notes))


def licence_of_folder(folder: Path) -> str | None:
    """The licence that a local model's card names in its YAML block, if it has one."""
    try:
        text = (folder / "README.md").read_bytes()[:MAX_SPEC_BYTES].decode()
        block = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return None
    licence = block.get("license") if isinstance(block, dict) else None
    return licence if isinstance(licence, str) else None


def licences_of(models: Iterable[_Licensed]) -> dict[str, str | None]:
    """What each model's card says, and each adapter's, by name."""
    found: dict[str, str | None] = {}
    for model in models:
        found[model.name] = model.licence
        if model.adapter is not None:
            found[f"{model.name} (adapter)"] = model.adapter.licence
    return found


def _unknown(licences: Mapping[str, str | None]) -> list[str]:
    silent = [name for name, licence in licences.items() if not licence or licence in ("unknown", "other")]
    return [f"no licence is known of {', '.join(silent)}"] if silent else []


def _unjudged(known: Mapping[str, str]) -> list[str]:
    return [
        f"the licence {each} of {_names(known, each.__eq__)} has to be read by a person" for each in _strange(known)
    ]


def _strange(known: Mapping[str, str]) -> list[str]:
    return sorted({each for each in known.values() if not _is_judged(each) and each not in ("unknown", "other")})


def _is_judged(licence: str) -> bool:
    ours = PERMISSIVE | KEPT | COMMUNITY
    return licence in ours or bool(_NO_COMMERCE.search(licence) or _NO_CHANGES.search(licence) or "rail" in licence)


def _conflicts(known: Mapping[str, str], distinct: list[str]) -> list[str]:
    found = []
    unchangeable = _names(known, lambda licence: bool(_NO_CHANGES.search(licence)))
    if unchangeable:
        found.append(f"{unchangeable} must not be changed, and a merge changes it")
    kept = [licence for licence in distinct if licence in KEPT]
    bound = [licence for licence in distinct if licence in COMMUNITY or _NO_COMMERCE.search(licence)]
    if len({_kin(licence) for licence in kept}) > 1:
        found.append(f"{', '.join(kept)} each want the result under themselves alone")
    if kept and bound:
        found.append(f"{', '.join(kept)} allows no further terms, and {', '.join(bound)} has some")
    families = [licence for licence in distinct if licence in COMMUNITY]
    if len(families) > 1:
        found.append(f"{', '.join(families)} are terms of different models, and each forbids to improve others with it")
    return found


def _kin(licence: str) -> str:
    """Licences of one kin can be combined in their strongest one."""
    return "gpl" if "gpl" in licence and licence != "gpl-2.0" else licence


def _identifier(licences: Mapping[str, str | None], distinct: list[str]) -> str:
    if len(distinct) == 1 and all(licences.values()):
        return distinct[0]
    strong = [licence for licence in distinct if licence not in PERMISSIVE]
    if len(strong) == 1 and all(licences.values()):
        return strong[0]
    if distinct and not strong and all(licences.values()):
        return "apache-2.0" if "apache-2.0" in distinct else distinct[0]
    return "other"


def _names(known: Mapping[str, str], holds: object) -> str:
    assert callable(holds)
    return ", ".join(name for name, licence in known.items() if holds(licence))
