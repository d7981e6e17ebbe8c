"""Fixtures that several test modules share: a tiny market, a run trained on it, its export.

Nothing heavy is imported here: tests that need no TensorFlow stay quick.
"""

import fcntl
import gc
import os
import shutil
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Two test processes share the cores, and so do the programs that they start.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Spark jobs of a few rows end before the optimizing compiler of Java has paid off.
os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_market import TinyMarket, make_market

if TYPE_CHECKING:
    from q2s_tf.models import Towers

# Traced graphs are millions of objects that stay: the default thresholds spend a sixth of the time on them.
gc.set_threshold(100_000, 50, 100)

LONGEST = (
    "test_training.py",
    "test_demo.py",
    "test_retrieval_model.py",
    "test_index.py",
    "test_update_index.py",
    "test_embedding.py",
    "test_distil_run.py",
    "test_evaluation.py",
    "test_distillation.py",
    "test_pretrained.py",
    "test_keras_user.py",
    "test_hybrid.py",
    "test_export.py",
    "test_command_lines.py",
    "test_demo_app.py",
    "test_milvus.py",
    "test_docs.py",
    "test_package.py",
    "test_search_log_definition.py",
    "test_publish.py",
    "test_server_attacks.py",
    "test_search_log_inputs.py",
    "test_search_log_build.py",
    "test_tower_servable.py",
    "test_shared_encoder.py",
    "test_server.py",
    "test_towers.py",
    "test_report_channels.py",
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
def run(market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of both stages with every kind of channel; one worker trains it for all, tests do not change it.

    Each worker has its own copy, because tests look for files that others have left in it.
    """
    from q2s_tf.config_files import read_config
    from q2s_tf.training import train

    def make(folder: Path) -> None:
        train(read_config(market.config), market.documents, market.positives, market.judgements, folder)

    return once(make, "tiny", tmp_path_factory)


def once(make: Callable[[Path], object], name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a folder that one of the test processes makes for all of them."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with open(shared.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shared.exists():
            make(base / "new")
            (base / "new").rename(shared)
    copy = tmp_path_factory.mktemp("copies") / name
    shutil.copytree(shared, copy)
    return copy


@pytest.fixture(scope="session")
def towers(run: Path) -> "Towers":
    """The trained towers."""
    from q2s_tf.models import load

    return load(run)


@pytest.fixture(scope="session")
def lean_run(market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of towers of 3-grams alone, for tests that need no text encoder; tests do not change it."""
    from q2s_tf.config_files import read_config
    from q2s_tf.training import train

    def make(folder: Path) -> None:
        config = read_config(market.lean_config, ["stage1.max_epochs=1"])
        train(config, market.documents, market.positives, market.judgements, folder)

    return once(make, "lean", tmp_path_factory)


@pytest.fixture(scope="session")
def models(run: Path, market: TinyMarket, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run exported with the exact index, as version 1; tests do not write into it."""
    from q2s_tf.serving.export import export  # needs export

    return once(lambda folder: export(run, market.documents, folder, "exact"), "models", tmp_path_factory)
