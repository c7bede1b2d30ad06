"""Request bodies: capped before they are parsed, JSON or YAML, plain data that Postgres can hold."""

import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, NoReturn

import yaml
from fastapi import Depends, Request

from api.dependencies import Owner
from api.problems import RefusalError
from glue.specs.base import MAX_SPEC_BYTES
from glue.specs.digests import canonical_json

YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml")
JSON_TYPE = "application/json"
MAX_YAML_DEPTH = 64

# libyaml's, where PyYAML was built with it: it reads the largest body in a second, Python's own takes ten.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# A NUL in canonical JSON: an odd number of backslashes before u0000.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


async def _raw_body(request: Request, owner: Owner) -> bytes:
    # The owner is asked for so that nothing is read for a caller without a key.
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > MAX_SPEC_BYTES:
        _refuse_size()
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_SPEC_BYTES:
            _refuse_size()
    return bytes(body)


def _parsed_body(request: Request, body: Annotated[bytes, Depends(_raw_body)]) -> Any:
    # A sync dependency runs in a thread: half a megabyte of YAML must not hold up the other requests.
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RefusalError(415, "unsupported_media_type", "compressed bodies are not read; send it as it is")
    if media_type == JSON_TYPE:
        value = _parse_json(body)
    elif media_type in YAML_TYPES:
        value = _parse_yaml(body)
    else:
        allowed = f"{JSON_TYPE} or {YAML_TYPES[0]}"
        raise RefusalError(
            415, "unsupported_media_type", f"the Content-Type is {media_type or 'missing'}; send {allowed}"
        )
    _check_storable(value)
    return value


Body = Annotated[Any, Depends(_parsed_body)]


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _unreadable("JSON", error) from None


def _parse_yaml(body: bytes) -> Any:
    try:
        text = body.decode("utf-8")
        _check_events(yaml.parse(text, Loader=_YAML_LOADER))
        return yaml.load(text, Loader=_YAML_LOADER)  # noqa: S506  (a safe loader)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable("YAML", error) from None


def _check_events(events: Iterable[yaml.Event]) -> None:
    """Refuse aliases, a few lines of which stand for more data than any machine holds, and depths that no spec has."""
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_YAML_DEPTH:
            raise yaml.YAMLError("it is nested too deeply")
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read here; write the value out")


def _check_storable(value: Any) -> None:
    """Refuse what has no canonical form (NaN, half a surrogate pair, YAML's dates) and NUL, which Postgres has not."""
    try:
        text = canonical_json(value)
        text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise _unreadable("plain JSON data", error) from None
    if _NUL.search(text):
        raise _unreadable("plain JSON data", ValueError("it holds a NUL character"))


def _unreadable(form: str, error: Exception) -> RefusalError:
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    return RefusalError(400, "unreadable_body", f"the body is not {form}: {reason}"[:500])


def _refuse_size() -> NoReturn:
    raise RefusalError(413, "too_large", f"the body is larger than {MAX_SPEC_BYTES // 1024} KiB")
