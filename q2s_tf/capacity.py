"""Machines for a catalogue of a given size and a given load, from measured unit costs."""

import math
from dataclasses import dataclass

from rich.table import Table

from q2s_tf.errors import InputError

EMBED_DOCUMENTS_PER_SECOND = 100.0
"""Documents that one core embeds in a second."""
QUERY_TOWER_PER_SECOND = 1_000.0
"""Queries that one core of TensorFlow Serving embeds in a second."""
SEARCHES_PER_SECOND = ((100_000, 1_000.0), (1_000_000, 480.0), (10_000_000, 150.0))
"""Documents of one partitioned index, and the queries from text to 100 ids that one core answers in a second."""
BYTES_BESIDE_VECTOR = 120
"""Memory of a document beside its vector: id, filters, and its share of partitions, on average."""
SHARD_DOCUMENTS = 10_000_000
"""Documents of one index: the largest that was measured."""
HEADROOM = 1.5
"""Provided throughput by peak throughput, so that waiting stays out of the p99."""
PROCESS_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Plan:
    """What a catalogue and a load need.

    Attributes:
        documents: N.
        qps: queries per second at the peak.
        engine: `retriever`, if one index holds the catalogue, else `milvus`.
        embed_core_hours: time to embed the whole catalogue, hours of one core.
        embed_machines: machines that embed it within the time allowed.
        shards: indexes of at most `SHARD_DOCUMENTS` documents; each query searches all of them.
        shard_bytes: memory of one index.
        tower_cores: cores that embed queries; 0 with the retriever, which contains the query tower.
        search_cores: cores that search, of all replicas.
        replicas: copies of each shard.
        search_machines: machines that hold the replicas of all shards.
    """

    documents: int
    qps: float
    engine: str
    embed_core_hours: float
    embed_machines: int
    shards: int
    shard_bytes: int
    tower_cores: float
    search_cores: float
    replicas: int
    search_machines: int


def plan_capacity(
    documents: int,
    qps: float,
    dimension: int = 128,
    storage_bytes: int = 4,
    cores: int = 16,
    memory_bytes: int = 64_000_000_000,
    embed_hours: float = 24.0,
    embed_per_second: float = EMBED_DOCUMENTS_PER_SECOND,
) -> Plan:
    """Compute the machines for a catalogue and a load.

        embedding: N / (documents per second of a core · 3600) core hours
        memory of a shard: n · (D · bytes of a number + 120) for n documents
        searching: 1.5 · qps · shards / (searches per second of a core, at n documents) cores

    Args:
        documents: N.
        qps: queries per second at the peak.
        dimension: D, numbers of an embedding.
        storage_bytes: bytes of a number in the index: 4 for float32, 2 for bfloat16, 1 for int8.
        cores: cores of a machine.
        memory_bytes: memory of a machine.
        embed_hours: hours in which the whole catalogue must be embedded, for example after a new training.
        embed_per_second: documents that one core embeds in a second.

    Raises:
        InputError: a machine cannot hold one shard.
    """
    shards = math.ceil(documents / SHARD_DOCUMENTS)
    rows = math.ceil(documents / shards)
    loaded = 2 if shards == 1 else 1  # TensorFlow Serving loads the next version beside the current one
    shard_bytes = rows * (dimension * storage_bytes + BYTES_BESIDE_VECTOR)
    held = (memory_bytes - PROCESS_BYTES) // (loaded * shard_bytes)
    if not held:
        needed = (loaded * shard_bytes + PROCESS_BYTES) / 1e9
        raise InputError(
            f"memory: an index of {rows:,} documents needs {needed:.0f} GB on one machine, got "
            f"{memory_bytes / 1e9:g}: raise --memory-gb, or lower --storage"
        )
    search_cores = HEADROOM * qps * shards / searches_per_second(rows)
    tower_cores = 0.0 if shards == 1 else HEADROOM * qps / QUERY_TOWER_PER_SECOND
    machines_for_one_copy = math.ceil(shards / held)
    replicas = max(2, math.ceil(search_cores / (cores * machines_for_one_copy)))
    embed_core_hours = documents / embed_per_second / 3600
    return Plan(
        documents=documents,
        qps=qps,
        engine="retriever" if shards == 1 else "milvus",
        embed_core_hours=embed_core_hours,
        embed_machines=math.ceil(embed_core_hours / embed_hours / cores),
        shards=shards,
        shard_bytes=shard_bytes,
        tower_cores=tower_cores,
        search_cores=search_cores,
        replicas=replicas,
        search_machines=replicas * machines_for_one_copy,
    )


def searches_per_second(documents: int) -> float:
    """Searches per second of one core over one index, interpolated between `SEARCHES_PER_SECOND` on a log scale."""
    sizes, rates = zip(*SEARCHES_PER_SECOND, strict=True)
    position = min(max(documents, sizes[0]), sizes[-1])
    upper = max(1, next(number for number, size in enumerate(sizes) if position <= size))
    (left, right), (slow, fast) = sizes[upper - 1 : upper + 1], (rates[upper - 1], rates[upper])
    share = math.log(position / left) / math.log(right / left)
    return slow * (fast / slow) ** share


def capacity_table(plan: Plan, cores: int, memory_bytes: int, embed_hours: float) -> Table:
    """A table of the machines of a plan and what each figure comes from."""
    table = Table("part", "needs", "machines", "from", title=f"{plan.documents:,} documents, {plan.qps:,.0f} queries/s")
    rate = plan.documents / plan.embed_core_hours / 3600
    table.add_row(
        "embed all documents within " + f"{embed_hours:g} h",
        f"{plan.embed_core_hours:,.1f} core hours",
        f"{plan.embed_machines:,}",
        f"{rate:,.0f} documents/s of a core",
    )
    tower = "in the retriever" if plan.engine == "retriever" else f"{plan.tower_cores:,.1f} cores"
    towers = "0" if plan.engine == "retriever" else f"{max(2, math.ceil(plan.tower_cores / cores)):,}"
    table.add_row("embed queries", tower, towers, f"{QUERY_TOWER_PER_SECOND:,.0f} queries/s of a core")
    table.add_row(
        f"search, {plan.engine}",
        f"{plan.search_cores:,.1f} cores, {plan.shards:,} × {plan.shard_bytes / 1e9:,.1f} GB, {plan.replicas} replicas",
        f"{plan.search_machines:,}",
        f"{searches_per_second(math.ceil(plan.documents / plan.shards)):,.0f} searches/s of a core in one index",
    )
    table.caption = (
        f"Machines of {cores} cores and {memory_bytes / 1e9:g} GB. {HEADROOM} times the peak load is provided, and at "
        "least two copies of everything. docs/scaling.md has the measurements."
    )
    return table
