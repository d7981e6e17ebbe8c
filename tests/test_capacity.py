"""The capacity calculator: its arithmetic by hand, and what must grow with what."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from q2s_tf.capacity import (
    BYTES_BESIDE_VECTOR,
    HEADROOM,
    QUERY_TOWER_PER_SECOND,
    SEARCHES_PER_SECOND,
    SHARD_DOCUMENTS,
    plan_capacity,
    searches_per_second,
)
from q2s_tf.commands import app
from q2s_tf.errors import InputError


def test_measured_sizes_have_the_measured_rates_and_others_lie_between() -> None:
    for size, rate in SEARCHES_PER_SECOND:
        assert searches_per_second(size) == pytest.approx(rate)
    (small, fast), (large, slow), *_ = SEARCHES_PER_SECOND
    assert searches_per_second(math.isqrt(small * large)) == pytest.approx((fast * slow) ** 0.5, rel=1e-4)
    assert searches_per_second(1) == fast
    assert searches_per_second(10**12) == SEARCHES_PER_SECOND[-1][1]


def test_one_index_holds_a_small_catalogue() -> None:
    plan = plan_capacity(1_000_000, qps=100, cores=16, embed_per_second=50)
    assert plan.engine == "retriever"
    assert plan.shard_bytes == 1_000_000 * (128 * 4 + BYTES_BESIDE_VECTOR)
    assert plan.search_cores == pytest.approx(HEADROOM * 100 / dict(SEARCHES_PER_SECOND)[1_000_000])
    assert (plan.shards, plan.replicas, plan.search_machines, plan.tower_cores) == (1, 2, 2, 0)
    assert plan.embed_core_hours == pytest.approx(1_000_000 / 50 / 3600)
    assert plan.embed_machines == 1


def test_a_billion_documents_need_shards_that_every_query_searches() -> None:
    plan = plan_capacity(10**9, qps=5_000, storage_bytes=1, cores=32, memory_bytes=128 * 10**9, embed_per_second=100)
    shards = 10**9 // SHARD_DOCUMENTS
    assert (plan.engine, plan.shards) == ("milvus", shards)
    cores = HEADROOM * 5_000 * shards / searches_per_second(SHARD_DOCUMENTS)
    assert plan.search_cores == pytest.approx(cores)
    assert plan.tower_cores == pytest.approx(HEADROOM * 5_000 / QUERY_TOWER_PER_SECOND)
    assert plan.search_machines * 32 >= cores
    assert plan.search_machines * 127 * 10**9 >= plan.replicas * shards * plan.shard_bytes
    assert plan.embed_machines == math.ceil(10**9 / 100 / 3600 / 24 / 32)


@given(st.integers(1, 10**10), st.integers(1, 10**5))
def test_more_documents_or_load_never_need_less(documents: int, qps: int) -> None:
    plan = plan_capacity(documents, qps)
    larger, busier = plan_capacity(2 * documents, qps), plan_capacity(documents, 2 * qps)
    assert larger.embed_machines >= plan.embed_machines
    assert larger.shards * larger.shard_bytes >= plan.shards * plan.shard_bytes
    assert busier.search_machines >= plan.search_machines
    assert plan.search_machines * 16 >= plan.search_cores


def test_a_machine_that_cannot_hold_a_shard_is_refused() -> None:
    with pytest.raises(InputError, match=r"an index of 10,000,000 documents needs .* GB on one machine, got 4: raise"):
        plan_capacity(10**8, 10, memory_bytes=4 * 10**9)


def test_the_command_prints_machines_and_assumptions() -> None:
    result = CliRunner().invoke(app, ["capacity", "--documents", "1e9", "--qps", "5000"])
    assert result.exit_code == 0, result.output
    printed = " ".join(result.output.split())
    for part in ("1,000,000,000 documents, 5,000 queries/s", "core hours", "milvus", "docs/scaling.md", "replicas"):
        assert part in printed
    with pytest.raises(InputError, match="--documents 1.5: must be a whole number, at least 1"):
        CliRunner().invoke(app, ["capacity", "--documents", "1.5"], catch_exceptions=False)
