"""The exported graph of a tower: the outputs of the Keras tower, few ops, and no op that a stock server lacks."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fresh_process
import keras
import numpy as np
import preloaded
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, saved_model_pb2
from tiny_market import IMAGE_DIM, TinyMarket, market_tokenizer, random_towers

from q2s_tf.config import IMAGES, CategoricalChannel, Config, Encoder, TextChannel, TrigramsChannel
from q2s_tf.config_files import read_config
from q2s_tf.models import Tower, Towers, encode
from q2s_tf.serving.export import export, write_servable
from q2s_tf.serving.tower_servable import LARGEST_CONSTANT, TowerServable
from q2s_tf.text import SentencePiece, train_tokenizer

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",
    "àéîõüçñßøåÆŒİıǅ",
    "абвгдежзийклмнопрстуфхцчшщъыьэюя",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "אבגדהוזחטיכלמנסעפצקרשת",
    "あいうえおかきくけこアイウエオｱｲｳｴｵ漢字椅子",
    "가나다라마바사아자차카타파하",
    "กขคงจฉชซญดตถทธนบปผพฟภมยรลวศสหอ",
    "ＡＢＣａｂｃ１２３ﬁ№²½",
    "👩🏽👧🛋️🚲🇩🇪",
    "-/.,'\"#&+%()",
]
CONTROLS = "\0\a\x1b\x7f\x85\u200b\u200d\ufe0f\u202e\ufeff \t\r\n\u3000"
COUNTRIES = [b"US", b"jp", b"", b"zz", b"\xff"]


def varied_queries(count: int, seed: int) -> list[bytes]:
    """Queries in many scripts, and unusual ones: empty, control characters, random bytes, a long page."""
    generator = np.random.default_rng(seed)

    def letters(alphabet: str, most: int) -> str:
        return "".join(generator.choice(list(alphabet), generator.integers(1, most + 1)))

    def words(alphabets: list[str], most: int) -> str:
        return " ".join(letters(generator.choice(alphabets), 9) for _ in range(generator.integers(1, most + 1)))

    kinds: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: letters(CONTROLS, 6).encode(),
        lambda: generator.bytes(generator.integers(1, 30)),
        lambda: words(ALPHABETS, 900).encode(),
        lambda: (words(ALPHABETS, 2) + letters(CONTROLS, 3) + words(ALPHABETS, 2)).encode(),
    ]
    kinds += [lambda: words(ALPHABETS, 6).encode()] * 9 + [lambda: words([generator.choice(ALPHABETS)], 5).encode()] * 6
    return [kinds[number % len(kinds)]() for number in generator.permutation(count)]


def in_batches(rows: list[Any], seed: int) -> Iterator[list[Any]]:
    """All rows, 1 to 64 at a time."""
    generator, begin = np.random.default_rng(seed), 0
    while begin < len(rows):
        size = int(generator.choice([1, 1, 2, 3, 8, 17, 64]))
        yield rows[begin : begin + size]
        begin += size


class SavedModel:
    """The default signature of a saved model, through the session loader, and the graph that it really runs."""

    def __init__(self, folder: Path, signature: str = "serving_default"):
        self.session = tf.compat.v1.Session(graph=tf.Graph())
        with self.session.graph.as_default():
            loaded = tf.compat.v1.saved_model.loader.load(self.session, ["serve"], str(folder))
        self.signature = loaded.signature_def[signature]

    def __call__(self, options: Any = None, metadata: Any = None, **inputs: Any) -> dict[str, np.ndarray]:
        feeds = {
            self.signature.inputs[name].name: np.array(value, object) if isinstance(value, list) else value
            for name, value in inputs.items()
        }
        fetches = {name: tensor.name for name, tensor in self.signature.outputs.items()}
        return self.session.run(fetches, feeds, options, metadata)

    def ops(self, **inputs: Any) -> Counter[str]:
        """How many of each op are left once TensorFlow has optimised the graph, constants not counted."""
        metadata = config_pb2.RunMetadata()
        self(config_pb2.RunOptions(output_partition_graphs=True), metadata, **inputs)
        return Counter(node.op for node in metadata.partition_graphs[0].node if node.op not in ("Const", "NoOp"))


def save(tower: Tower, folder: Path) -> Path:
    servable = TowerServable(tower)
    tf.saved_model.save(servable, str(folder), servable.endpoints)
    return folder


def check_equal(model: SavedModel, tower: Tower, queries: list[bytes], seed: int) -> float:
    """Compares an export with the Keras tower; the largest difference."""
    rows = [(query, COUNTRIES[number % len(COUNTRIES)]) for number, query in enumerate(queries)]
    worst = 0.0
    for batch in in_batches(rows, seed):
        columns = {"query": [query for query, _ in batch], "country": [country for _, country in batch]}
        answer, expected = model(**columns), encode(tower, columns)
        assert set(answer) == {"embedding", "channel_weights"}
        for name, values in expected.items():
            np.testing.assert_allclose(answer[name], values, atol=1e-5, err_msg=str(batch))
            worst = max(worst, float(np.abs(answer[name] - values).max()))
    return worst


# --- the same numbers


def test_an_export_equals_the_keras_tower_for_all_kinds_of_text(models: Path, towers: Towers) -> None:
    queries = varied_queries(240, seed=1)
    check_equal(SavedModel(models / "query_tower/1"), towers.query, queries, seed=2)
    nothing = SavedModel(models / "query_tower/1")(query=[b"", b"\0\xe2\x80\x8b"], country=[b"", b"zz"])
    assert not nothing["embedding"].any(), "no channel, no direction"
    assert not nothing["channel_weights"].any()


@pytest.fixture(scope="module")
def paper_tower() -> Tower:
    """The paper's query tower with random weights, some of them too large for a constant."""
    texts = [query.decode(errors="replace").replace("\0", " ") for query in varied_queries(3_000, seed=3)]
    channels = {
        "trigrams": TrigramsChannel(tower="query", input="query", kind="trigrams", max_trigrams=64),
        "country": CategoricalChannel(tower="query", input="country", kind="categorical", values=("us", "jp")),
        "text": TextChannel(tower="query", input="query", kind="text", encoder="query", max_tokens=16),
        "title": TrigramsChannel(tower="document", input="title", kind="trigrams"),
    }
    config = Config(channels=channels, encoders={"query": Encoder()})
    model = train_tokenizer([text for text in texts if text.strip()], 2_000)
    tower = Tower(config, "query", {"query": SentencePiece(model).vocabulary_size}, {"query": model})
    generator = np.random.default_rng(4)
    for weight in tower.trainable_variables:
        weight.assign(weight.numpy() + generator.normal(scale=0.1, size=weight.shape).astype(np.float32))
    return tower


@pytest.mark.slow
def test_ten_thousand_varied_queries_get_the_keras_towers_vectors(paper_tower: Tower, tmp_path: Path) -> None:
    model = SavedModel(save(paper_tower, tmp_path / "model"))
    assert check_equal(model, paper_tower, varied_queries(10_000, seed=5), seed=6) < 1e-5


def test_image_vectors_that_are_not_finite_are_padding(models: Path) -> None:
    generator = np.random.default_rng(7)
    images = generator.normal(size=(5, 3, IMAGE_DIM)).astype(np.float32)
    broken = images.copy()
    broken[0, 1, 2], broken[1, 0, 0], broken[2, 2, 5] = np.nan, np.inf, -np.inf
    broken[3] = np.nan
    images[0, 1] = images[1, 0] = images[2, 2] = images[3] = 0
    texts = {
        name: [b"red sofa", b"", b"sofa", b"lamp", b""] for name in ("title", "description", "language", "country")
    }
    model = SavedModel(models / "document_tower/1")
    expected, answer = model(**texts, **{IMAGES: images}), model(**texts, **{IMAGES: broken})
    for name, values in expected.items():
        np.testing.assert_array_equal(answer[name], values)
    channel = np.flatnonzero(expected["channel_weights"][4] > 0)
    assert len(channel) == 1, "the row that has images alone"
    assert not answer["channel_weights"][3, channel].any(), "no vector is left of this one"


# --- bounded cost

HUGE_TEXTS = r"""
import resource, sys
import numpy as np
import tensorflow as tf
import tensorflow_text

UNITS = {
    "query": [b"sofa ", "\ufdfa".encode(), "a\u0323\u0301\u0323".encode(), "\u0301\u0323".encode(), b"\0",
              b"\xff", b"\xed\xa0\x80", "\U0001f469\u200d".encode(), b"\xf0\x9f"],
    "country": [b"US", "\ufdfa".encode()],
}

def peak() -> int:  # MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    signature = tf.compat.v1.saved_model.loader.load(session, ["serve"], sys.argv[1]).signature_def["serving_default"]
    output = signature.outputs["embedding"].name

    def embed(query: bytes, country: bytes, rows: int = 1) -> np.ndarray:
        values = {"query": query, "country": country}
        feeds = {signature.inputs[name].name: np.array([value] * rows, object) for name, value in values.items()}
        return session.run(output, feeds)

    embed(b"red sofa", b"US", 256)
    idle = peak()
    for name, units in UNITS.items():
        for unit in units:
            short, long = (unit * (size // len(unit)) for size in (8_300, 10_000_000))
            first, second = (embed(**{"query": b"red", "country": b"US", name: text}) for text in (short, long))
            np.testing.assert_array_equal(first, second, str(unit))
    print(peak() - idle)
    one_megabyte = "\ufdfa".encode() * 333_333
    assert np.isfinite(embed(one_megabyte, b"US", 256)).all()
    print(peak() - idle)
"""


def test_huge_texts_cost_what_their_first_characters_cost(models: Path) -> None:
    """In the graph itself, as a stock server runs it: peak memory above that of a small request."""
    done = preloaded.run(["-c", HUGE_TEXTS, models / "query_tower/1"])
    assert done.returncode == 0, done.stderr[-3000:]
    single, batch = map(int, done.stdout.split())
    assert single < 150, "MB"
    assert batch < 256 + 300, "MB; the texts alone are 256"


def test_an_input_that_no_channel_reads_is_optional(market: TinyMarket, tmp_path: Path) -> None:
    """The signature keeps it, with a default, and the graph does not compare its length with that of the others."""
    config = read_config(market.lean_config)
    towers = random_towers(config, market_tokenizer(market))
    embeddings = towers.encode_queries(["red sofa", "lamp"], countries="US")
    write_servable(TowerServable(towers.query), tmp_path / "query_tower", {"servable": "query_tower"})
    model = SavedModel(tmp_path / "query_tower")
    assert set(model.signature.inputs) == {"query", "country"}
    (default,) = model.signature.defaults.values()
    country = tf.make_ndarray(default)
    assert country.tolist() == [b""]
    for given in (country, np.array([b"US", b"JP"], object)):
        outputs = model(query=[b"red sofa", b"lamp"], country=given)
        np.testing.assert_allclose(outputs["embedding"], embeddings, atol=1e-6)
    write_servable(TowerServable(towers.document), tmp_path / "document_tower", {"servable": "document_tower"})
    defaults = SavedModel(tmp_path / "document_tower").signature.defaults
    assert set(defaults) == {"description", "language", "country", IMAGES}


# --- few ops


def test_the_graph_has_fused_products_and_reads_nothing_but_tables(paper_tower: Tower, tmp_path: Path) -> None:
    tables = [weight for weight in paper_tower.weights if np.prod(weight.shape) > LARGEST_CONSTANT]
    assert [weight.path.split("/")[0] for weight in tables] == ["trigrams_vector"]
    one = {"query": [b"red sofa"], "country": [b"US"]}
    folded = SavedModel(save(paper_tower, tmp_path / "folded")).ops(**one)

    archive = keras.export.ExportArchive()
    archive.track(paper_tower)
    inputs = [tf.TensorSpec([None], tf.string, name=name) for name in one]
    archive.add_endpoint(
        "serving_default", lambda query, country: paper_tower({"query": query, "country": country}), inputs
    )
    archive.write_out(str(tmp_path / "plain"), verbose=False)
    plain = SavedModel(tmp_path / "plain").ops(**one)

    assert folded["VarHandleOp"] == len(tables) < plain["VarHandleOp"]
    # Four products in the first layer (q k v; output; two of the feed-forward part), five in the last, where the query
    # is [CLS] alone; the text's projection, the fusion, and the look-up of the country.
    # They are MatMul, _FusedMatMul, or what oneDNN calls them on the machine at hand.
    assert sum(count for op, count in folded.items() if op.endswith("MatMul")) == 4 + 5 + 3, folded
    assert folded["ConcatV2"] == 1, "[CLS] before the pieces: no kernels are put together at run time"
    assert folded.total() < 0.75 * plain.total(), (folded, plain)


def test_signatures_share_the_constants_of_one_tower(paper_tower: Tower, tmp_path: Path) -> None:
    specs = list(paper_tower.signature().values())
    module = tf.Module()
    module.tower = TowerServable(paper_tower)

    def embed(*values: tf.Tensor) -> dict[str, tf.Tensor]:
        return module.tower(dict(zip([spec.name for spec in specs], values, strict=True)))

    sizes = []
    for count in (1, 3):
        endpoints = {f"s{number}": tf.function(embed, input_signature=specs) for number in range(count)}
        tf.saved_model.save(module, str(tmp_path / str(count)), endpoints)
        sizes.append((tmp_path / str(count) / "saved_model.pb").stat().st_size)
    assert sizes[1] < 1.2 * sizes[0]


# --- what a stock server needs


@pytest.fixture(scope="module")
def every_default_index(run: Path, market: TinyMarket, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports with both kinds of index that a stock server can run."""
    folder = tmp_path_factory.mktemp("kinds") / "models"
    shutil.copytree(models, folder)
    export(run, market.documents, folder, "partitioned")
    return folder


def test_default_exports_have_no_op_that_a_stock_server_lacks(every_default_index: Path, tmp_path: Path) -> None:
    (answer,) = fresh_process.answers([("ops", every_default_index, "", {})], tmp_path)
    libraries = dict(zip(answer["op"].tolist(), answer["library"].tolist(), strict=True))
    assert set(libraries.values()) == {"tensorflow", "text"}, libraries
    assert not [op for op in libraries if op.startswith("Xla")], "XLA is off on a stock server"
    for path in every_default_index.rglob("saved_model.pb"):
        (graph,) = saved_model_pb2.SavedModel.FromString(path.read_bytes()).meta_graphs
        functions = graph.graph_def.library.function
        assert not [function.signature.name for function in functions if function.attr["_XlaMustCompile"].b]
