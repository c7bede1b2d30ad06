"""How worker processes speak to whoever runs them: one format, short errors, no passwords."""

from urllib.parse import urlsplit, urlunsplit


def masked(url: str) -> str:
    """The address without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))


def brief(error: BaseException) -> str:
    """Type and first line of an error; of a database's error only what the server said, no statement, no values."""
    told = getattr(error, "orig", None) or error
    lines = str(told).strip().splitlines() or [""]
    return f"{type(told).__name__}: {lines[0]}"
