"""An S3 server as a real process on loopback, for tests."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import s3fs

from workers.embedded.process import tie_to_parent, wait_for


@dataclass(frozen=True)
class ObjectStorage:
    """Where the server answers, and the environment in which a client finds it."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """What every client of S3 reads."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def bucket(self, name: str) -> str:
        """The URL of a new bucket."""
        keys = {"key": "test", "secret": "test", "endpoint_url": self.endpoint}
        s3fs.S3FileSystem(**keys, skip_instance_cache=True).mkdir(name)
        return f"s3://{name}"


@contextmanager
def object_storage() -> Iterator[ObjectStorage]:
    """A server that is gone when the block ends."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    process = subprocess.Popen(command, env=environment, preexec_fn=tie_to_parent(), **quiet)
    try:
        url = f"http://127.0.0.1:{port}"
        assert wait_for(lambda: _answers(url), 30)
        yield ObjectStorage(url)
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/moto-api/", timeout=1).status_code < 500
    except httpx.HTTPError:
        return False
