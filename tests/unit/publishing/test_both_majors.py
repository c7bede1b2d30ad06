"""The same push and the same preflight with the other major of the Hub's client, in processes of their own."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub.pushing import finished_folder, holds, main_commits, start_pusher
from tests.support.hub.server import OWNER, TOKEN, StandIn, hub
from tests.support.model_folders import write_model

ROOT = Path(__file__).parents[3]
OTHER = ROOT / "build" / "hub1"

PREFLIGHT = """
import sys
from pathlib import Path
import huggingface_hub
from glue.references.findings import Findings
from glue.references.hub_access import HubAccess
from glue.references.hub_download import download
from glue.references.models import find_models
from glue.specs.zoo import ZooSpec
access = HubAccess(sys.argv[1], Path(sys.argv[2]), token=sys.argv[4])
zoo = ZooSpec.parse({"name": "z", "members": [{"name": "a", "source": sys.argv[3]}]})
(found,) = find_models(zoo, [], Findings(), access)
print(huggingface_hub.__version__, download(found.repo, found.commit, access, lambda *_: None, lambda *_: None))
"""

pytestmark = pytest.mark.skipif(not OTHER.is_dir(), reason="`make test` installs the other client there")


@pytest.fixture
def standing(tmp_path: Path) -> Iterator[StandIn]:
    with hub(tmp_path / "hub") as running:
        yield running


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_a_push(xet: bool, standing: StandIn, tmp_path: Path) -> None:
    folder = finished_folder(tmp_path / "made")
    for _ in range(2):
        said, told = start_pusher(standing, folder, xet=xet, client=OTHER).communicate(timeout=60)
        assert said.startswith("1."), told
        (commit,) = main_commits(standing)
        assert said.split()[-1] == commit.oid
        assert holds(commit, folder)


def test_preflight_and_download(standing: StandIn, tmp_path: Path) -> None:
    standing.store.add_folder(f"{OWNER}/a", write_model(tmp_path / "a"), private=True)
    environment = standing.environment() | {"PYTHONPATH": f"{OTHER}:{ROOT}"}
    command = [sys.executable, "-c", PREFLIGHT, standing.url, str(tmp_path / "cache"), f"{OWNER}/a", TOKEN]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    version, folder = done.stdout.split()
    assert version.startswith("1.")
    assert (Path(folder) / "model.safetensors").read_bytes() == (tmp_path / "a" / "model.safetensors").read_bytes()
