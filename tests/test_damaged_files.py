"""Damaged files of every format give rows or one `InputError`, never another exception."""

import gzip
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_market import CONFIG

from q2s_tf.config_files import read_config
from q2s_tf.errors import InputError
from q2s_tf.tables import open_documents

ROWS = [
    {"document_id": n, "title": f'title "{n}", 赤い', "description": None, "image_embeddings": [[n / 7, 1.0]] * (n % 3)}
    for n in range(60)
]


def text(delimiter: str) -> bytes:
    lines = [delimiter.join(ROWS[0]), *(delimiter.join(str(cell or "") for cell in row.values()) for row in ROWS)]
    return "\n".join(lines).encode()


def parquet(**options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=25, **options)
    return sink.getvalue().to_pybytes()


def read_table(path: Path) -> Any:
    return open_documents(path, vectors={"image_embeddings": 2}).read()


FILES: dict[str, tuple[Callable[[], bytes], Callable[[Path], Any]]] = {
    "t.parquet": (parquet, read_table),
    "zstd.parquet": (lambda: parquet(compression="zstd", use_dictionary=False), read_table),
    "t.tsv": (lambda: text("\t"), read_table),
    "t.tsv.gz": (lambda: gzip.compress(text("\t")), read_table),
    "t.csv": (lambda: text(","), read_table),
    "t.jsonl": (lambda: "".join(f'{{"document_id": {n}, "title": "a"}}\n' for n in range(40)).encode(), read_table),
    "c.toml": (lambda: CONFIG.encode(), read_config),
}


def damage(content: bytes, generator: random.Random) -> bytes:
    """Bits flipped, a part cut out, the end cut off, or bytes put in."""
    damaged = bytearray(content)
    for _ in range(generator.choice((1, 1, 2, 10))):
        place = generator.randrange(len(damaged))
        match generator.randrange(4):
            case 0:
                damaged[place] ^= 1 << generator.randrange(8)
            case 1:
                del damaged[place : place + generator.randrange(1, 50)]
            case 2:
                del damaged[max(1, place) :]
            case _:
                damaged[place:place] = generator.choice(
                    (
                        b'"',
                        b"\t",
                        b"\n",
                        b"\r",
                        b"\0",
                        b"\xff\xfe",
                        b"[" * 3000,
                        generator.randbytes(8),
                        b"nan",
                        b"9" * 5000,
                    )
                )
        damaged = damaged or bytearray(b"x")
    return bytes(damaged)


def check_damaged(name: str, seeds: range, folder: Path) -> None:
    make, read = FILES[name]
    content, refused = make(), 0
    for seed in seeds:
        (folder / name).write_bytes(damage(content, random.Random(seed)))
        try:
            read(folder / name)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
            assert len(str(error)) < 20_000
            assert name in str(error)
    assert refused > len(seeds) // 10, "the damage is seen"


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    check_damaged(name, range(40), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_many_damaged_files(name: str, tmp_path: Path) -> None:
    check_damaged(name, range(40, 440), tmp_path)
