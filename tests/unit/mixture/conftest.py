"""One built mixture for all tests of this folder; tests only read it."""

from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from glue.mixture.load import load_model
from tests.support.mixtures import MixtureFolders, mix, three_experts


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
    """One thread: with more, small batches of some shapes round differently. No progress bars."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    yield
    torch.set_num_threads(before)
