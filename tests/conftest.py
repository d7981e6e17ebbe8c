"""Fixtures that several test modules share: a tiny market, a run trained on it, its export.

Nothing heavy is imported here: tests that need no TensorFlow stay quick.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Two test processes share the cores, and so do the programs that they start.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_market import TinyMarket, make_market

if TYPE_CHECKING:
    from q2s_tf.models import Towers

LONGEST = (
    "test_training.py",
    "test_retrieval_model.py",
    "test_pretrained.py",
    "test_demo.py",
    "test_distillation.py",
    "test_keras_user.py",
    "test_evaluation.py",
    "test_export.py",
    "test_command_lines.py",
    "test_update_index.py",
)
"""Files whose tests take longest. They come first, so that no process waits for the other one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def market(tmp_path_factory: pytest.TempPathFactory) -> TinyMarket:
    """60 documents in 4 scripts, their positives and judgements, and two configs, as files."""
    return make_market(tmp_path_factory.mktemp("market"))


@pytest.fixture(scope="session")
def trained(market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, "Towers"]:
    """A run directory of both stages with every kind of channel, and the towers that training returned."""
    from q2s_tf.config_files import read_config
    from q2s_tf.training import train

    run = tmp_path_factory.mktemp("runs") / "tiny"
    towers = train(read_config(market.config), market.documents, market.positives, market.judgements, run)
    return run, towers


@pytest.fixture(scope="session")
def run(trained: tuple[Path, "Towers"]) -> Path:
    """The run directory of `trained`."""
    return trained[0]


@pytest.fixture(scope="session")
def towers(trained: tuple[Path, "Towers"]) -> "Towers":
    """The towers of `trained`."""
    return trained[1]


@pytest.fixture(scope="session")
def models(run: Path, market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run exported with the exact index, as version 1; tests do not write into it."""
    from q2s_tf.serving.export import export  # needs export

    folder = tmp_path_factory.mktemp("models")
    export(run, market.documents, folder, "exact")
    return folder
