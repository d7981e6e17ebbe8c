"""Config files: what is read, what is refused, what is written back."""

import copy
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tiny_market import CONFIG

from q2s_tf.config import IMAGES, Config
from q2s_tf.config_files import check_config, read_config, save_config
from q2s_tf.errors import InputError


def tables() -> dict[str, Any]:
    return tomllib.loads(CONFIG)


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_values_of_the_file_are_read_and_the_rest_has_the_papers_defaults(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, CONFIG))
    assert config.dimension == 16
    assert config.stage1.batch_size == 16
    assert config.stage2.margin == 0.2
    assert config.encoders["query"].dropout == 0.1
    assert config.clip_norm == 1.0
    assert config.stage1.patience == 3
    paper = Config.model_validate({**tables(), "stage1": {}, "stage2": {}, "encoders": {"query": {}, "document": {}}})
    assert (paper.stage1.batch_size, paper.stage1.learning_rate, paper.stage1.text_learning_rate) == (768, 7e-4, 2e-4)
    assert 15 <= paper.stage1.scale <= 20
    assert 0.1 <= paper.stage2.margin <= 0.2
    encoder = paper.encoders["query"]
    assert (encoder.num_layers, encoder.num_heads, encoder.hidden_dim, encoder.intermediate_dim) == (2, 4, 128, 384)


def test_a_head_has_the_papers_number_of_queries_and_is_there_when_its_table_is(tmp_path: Path) -> None:
    path = write(tmp_path, CONFIG)
    assert read_config(path).head is None
    head = read_config(path, ["head.weight=0.3"]).head
    assert head is not None
    assert (head.queries, head.weight) == (45_000, 0.3)
    assert read_config(path, ["head.queries=0"]).head is None


def test_a_saved_config_reads_back_equal(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, CONFIG))
    save_config(config, tmp_path / "resolved.toml")
    assert read_config(tmp_path / "resolved.toml") == config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "resolved.toml"]


def test_the_file_of_the_project_is_valid() -> None:
    for path in sorted((Path(__file__).parents[1] / "configs").glob("*.toml")):
        read_config(path)


def test_modality_is_the_input_unless_given(tmp_path: Path) -> None:
    channels = read_config(write(tmp_path, CONFIG)).channels
    assert channels["title_trigrams"].modality == channels["title_text"].modality == "title"
    assert channels["images"].modality == "images"


def test_inputs_of_a_tower_are_the_fixed_ones_and_then_what_else_its_channels_read() -> None:
    changed = tables()
    changed["channels"]["brand"] = {"tower": "document", "kind": "trigrams", "input": "brand"}
    config = check_config(changed, "test")
    assert config.tower_inputs("query") == ["query", "country"]
    assert config.tower_inputs("document") == ["title", "description", "language", "country", IMAGES, "brand"]
    assert list(config.tower_channels("document"))[-1] == "brand"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("stage1.batch_size=512", ("stage1", "batch_size"), 512),
        ("stage1.learning_rate=1e-3", ("stage1", "learning_rate"), 1e-3),
        ("channels.query_text.encoder=query", ("channels", "query_text", "encoder"), "query"),
        ("evaluation.relevant_at = 2.33", ("evaluation", "relevant_at"), 2.33),
        ("seed=9", ("seed",), 9),
        ('channels.language.values=["en","ru"]', ("channels", "language", "values"), ["en", "ru"]),
    ],
)
def test_an_override_is_the_same_as_another_file(
    tmp_path: Path, override: str, key: tuple[str, ...], value: Any
) -> None:
    expected = tables()
    place = expected
    for part in key[:-1]:
        place = place[part]
    place[key[-1]] = value
    assert read_config(write(tmp_path, CONFIG), [override]) == check_config(expected, "expected")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage1.batch=5", "unknown key 'stage1.batch'"),
        ("colour=red", "unknown key 'colour'"),
        ("channels.query_text.buckets=5", "unknown key 'channels.query_text.*buckets'"),
        ("dimension=0", "dimension: Input should be greater than 0 (got 0)"),
        ("stage1.batch_size=1", "stage1.batch_size: .* (got 1)"),
        ("stage2.negative_rank=16", "stage2: negative_rank 16 must be less than batch_size 16"),
        ("stage2.negatives=near", "stage2.negatives: .*'all' or 'same_country' (got 'near')"),
        ("stage1.scale=0.5", "stage1.scale: .* (got 0.5)"),
        ("clip_norm=many", "clip_norm: .* (got 'many')"),
        ("encoders.query.num_heads=3", "hidden_dim 16 must be a multiple of num_heads 3"),
        ("channels.query_text.encoder=none_such", "'none_such', which is not declared (declared: query, document)"),
        ("evaluation.validation_metric=auc", "evaluation.validation_metric: .*'ndcg@10', 'recall@10' or 'recall@100'"),
        ("channels.images.kind=sounds", "channels.images: .*'trigrams', 'categorical', 'text', 'vectors'"),
        ("format=99", "format 99 is of another version"),
        ("stage1", "expected key=value"),
        ("dimension.more=1", "'dimension' is a value, not a table"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        read_config(write(tmp_path, CONFIG), [override])
    text = str(raised.value)
    assert "\n" not in text
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    assert re.search(pattern, text), text


def test_a_tower_without_channels_is_refused() -> None:
    changed = copy.deepcopy(tables())
    changed["channels"] = {name: each for name, each in changed["channels"].items() if each["tower"] == "document"}
    with pytest.raises(InputError, match="the query tower has no channel"):
        check_config(changed, "test")


@pytest.mark.parametrize(("content", "message"), [(b"a = [", "not a TOML file"), (b"a = '\xe9'", "not a TOML file")])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_config(tmp_path / "config.toml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.toml: there is no such file"):
        read_config(tmp_path / "absent.toml")
