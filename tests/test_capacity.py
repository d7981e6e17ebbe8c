"""The capacity calculator: its arithmetic by hand, and what must grow with what."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from q2s_tf.capacity import (
    BYTES_BESIDE_VECTOR,
    HEADROOM,
    MAX_RETRIEVER,
    QUERY_TOWER_PER_SECOND,
    SEARCHES_PER_SECOND,
    measured_rate,
    plan_capacity,
)
from q2s_tf.commands import app
from q2s_tf.errors import InputError

MILLION = dict(SEARCHES_PER_SECOND)[1_000_000]


def test_measured_sizes_have_the_measured_rates_and_others_lie_between() -> None:
    for size, rate in SEARCHES_PER_SECOND:
        assert measured_rate(size) == pytest.approx(rate)
    (small, fast), (large, slow), *_ = SEARCHES_PER_SECOND
    assert measured_rate(math.isqrt(small * large)) == pytest.approx((fast * slow) ** 0.5, rel=1e-4)
    assert measured_rate(1) == fast
    assert measured_rate(10**12) == SEARCHES_PER_SECOND[-1][1]


def test_one_machine_holds_a_small_catalogue() -> None:
    plan = plan_capacity(1_000_000, qps=100, cores=16, embed_per_second=50)
    assert plan.engine == "retriever"
    assert plan.copy_bytes == 1_000_000 * (128 * 4 + BYTES_BESIDE_VECTOR)
    assert plan.search_cores == pytest.approx(HEADROOM * 100 / MILLION)
    assert (plan.copies, plan.search_machines, plan.tower_cores) == (2, 2, 0)
    assert plan.embed_core_hours == pytest.approx(1_000_000 / 50 / 3600)
    assert plan.embed_machines == 1


def test_a_billion_documents_are_searched_in_parts_by_every_query() -> None:
    plan = plan_capacity(10**9, qps=5_000, storage_bytes=1, cores=32, memory_bytes=128 * 10**9, embed_per_second=100)
    assert plan.engine == "milvus"
    assert plan.search_cores == pytest.approx(HEADROOM * 5_000 * 1_000 / MILLION)
    assert plan.tower_cores == pytest.approx(HEADROOM * 5_000 / QUERY_TOWER_PER_SECOND)
    assert plan.search_machines * 32 >= plan.search_cores
    assert plan.search_machines * 127 * 10**9 >= plan.copies * plan.copy_bytes
    assert plan.embed_machines == math.ceil(10**9 / 100 / 3600 / 24 / 32)
    faster = plan_capacity(10**9, qps=5_000, storage_bytes=1, searches_per_second=10 * MILLION)
    assert faster.search_cores == pytest.approx(plan.search_cores / 10)


def test_a_catalogue_that_a_machine_cannot_hold_twice_goes_to_milvus() -> None:
    assert plan_capacity(MAX_RETRIEVER, 1, memory_bytes=64 * 10**9).engine == "retriever"
    assert plan_capacity(MAX_RETRIEVER, 1, memory_bytes=8 * 10**9).engine == "milvus"
    assert plan_capacity(MAX_RETRIEVER + 1, 1).engine == "milvus"


@given(st.integers(1, 10**10), st.integers(1, 10**5))
def test_more_documents_or_load_never_need_less(documents: int, qps: int) -> None:
    plan = plan_capacity(documents, qps)
    larger, busier = plan_capacity(2 * documents, qps), plan_capacity(documents, 2 * qps)
    assert larger.embed_machines >= plan.embed_machines
    assert larger.copy_bytes == 2 * plan.copy_bytes
    assert busier.search_machines >= plan.search_machines
    assert plan.search_machines * 16 >= plan.search_cores
    assert plan.copies >= 2


def test_the_command_prints_machines_and_assumptions() -> None:
    result = CliRunner().invoke(app, ["capacity", "--documents", "1e9", "--qps", "5000"])
    assert result.exit_code == 0, result.output
    printed = " ".join(result.output.split())
    for part in ("1,000,000,000 documents, 5,000 queries/s", "core hours", "Milvus (not measured)", "docs/scaling.md"):
        assert part in printed
    with pytest.raises(InputError, match=r"--documents 1\.5: must be a whole number, at least 1"):
        CliRunner().invoke(app, ["capacity", "--documents", "1.5"], catch_exceptions=False)
