"""One built mixture for all tests of this folder; tests only read it."""

from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedModel

from glue.mixture.load import load_model
from tests.support.mixtures import MixtureFolders, mix, three_experts
from tests.support.quiet import one_thread


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> MixtureFolders:
    root = tmp_path_factory.mktemp("mixture")
    experts = three_experts(root)
    return MixtureFolders(mix(root / "mixture", experts), experts)


@pytest.fixture(scope="session")
def model(built: MixtureFolders) -> PreTrainedModel:
    return load_model(built.folder, torch.float32, "cpu")


@pytest.fixture(scope="session")
def alone(built: MixtureFolders) -> list[PreTrainedModel]:
    return built.experts_alone()


@pytest.fixture(autouse=True, scope="session")
def quiet() -> Iterator[None]:
    with one_thread():
        yield
