"""Files of artifacts that lie on object storage, streamed to the client. Knows no records."""

import re

from fastapi import Response
from fastapi.responses import StreamingResponse

from glue.artifacts.storage import ArtifactStorage

_ONE_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def stored_file(
    storage: ArtifactStorage, location: str, path: str, size: int, headers: dict[str, str], wanted: str | None
) -> Response:
    """The file, or the one range of it that the header `wanted` asks for; several ranges are answered with all of it.

    Raises:
        FileNotFoundError: it is not stored.
    """
    headers = {**headers, "Accept-Ranges": "bytes"}
    span = _span(wanted, size)
    if span is None:
        blocks = storage.read(location, path, 0, size)
        return StreamingResponse(blocks, 200, {**headers, "Content-Length": str(size)})
    start, end = span
    if start >= end:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    blocks = storage.read(location, path, start, end)
    told = {"Content-Range": f"bytes {start}-{end - 1}/{size}", "Content-Length": str(end - start)}
    return StreamingResponse(blocks, 206, {**headers, **told})


def _span(wanted: str | None, size: int) -> tuple[int, int] | None:
    """Start and exclusive end; None where all is wanted, an empty span where nothing can be had."""
    found = _ONE_RANGE.fullmatch(wanted or "")
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    end = min(size, int(last) + 1) if last else size
    return int(first), end
