"""The benchmark that shows where the time of a request goes."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny_market import TinyMarket

from q2s_tf.errors import InputError

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("op_profile")
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_every_channel_of_the_query_tower_has_a_group(
    benchmark: ModuleType,
    models: Path,
    market: TinyMarket,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")  # main sets it too: it is restored
    benchmark.main(models / "query_tower", market.judgements, "serving_default", rounds=3, ops=1_000)
    printed = capsys.readouterr().out
    for group in ("normalised", "query_trigrams_ids", "query_trigrams_vector", "query_text_encoder", "fusion"):
        assert group in printed
    assert "TFText>FastSentencepiece" in printed


@pytest.mark.parametrize(
    ("op", "group"),
    [
        ("StatefulPartitionedCall/StatefulPartitionedCall/query_tower_1/fusion_1/Softmax", "fusion"),
        ("StatefulPartitionedCall/query_tower_1/preprocessor_1/query_tokens_1/Cast", "query_tokens"),
        ("StatefulPartitionedCall/query_tower_1/stack", "other"),
        ("_retval_StatefulPartitionedCall_0_0", "other"),
    ],
)
def test_the_group_of_an_op_is_its_layer(benchmark: ModuleType, op: str, group: str) -> None:
    assert benchmark.group_of(op) == group


def test_the_newest_version_is_profiled(benchmark: ModuleType, models: Path, tmp_path: Path) -> None:
    newest = benchmark.newest_version(models / "query_tower")
    assert benchmark.newest_version(newest) == newest
    with pytest.raises(InputError, match="holds no saved model and no version of one"):
        benchmark.newest_version(tmp_path)
