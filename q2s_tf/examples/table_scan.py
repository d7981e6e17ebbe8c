"""The first pass over the catalogue and the positives: ids, categories and the texts of the tokenizer."""

from collections import Counter
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from q2s_tf.cli import track
from q2s_tf.config import Config
from q2s_tf.errors import InputError
from q2s_tf.models import unique_ids
from q2s_tf.tables import Table
from q2s_tf.text import normalise


class TableScan:
    """The first pass over the catalogue or the positives.

    Args:
        config: declares the channels.
        side: "document" for the catalogue, "query" for the positives.
        table: the table.

    Attributes:
        document_ids: ids of a catalogue, checked.

    Raises:
        InputError: a channel of the document tower reads a column that the catalogue does not have.
    """

    def __init__(self, config: Config, side: str, table: Table):
        self.config, self.side, self.table = config, side, table
        for name, channel in config.tower_channels(side).items():
            if side == "document" and channel.input in table.missing:
                raise InputError(
                    f"{table.kind} {table.path}: channel {name} reads the column {channel.input}, which is not there "
                    f"(columns: {', '.join(table.available)}): add it, or remove the channel from the config"
                )
        self.document_ids: pa.Array = pa.array([], pa.string())
        self._values: dict[str, Counter[str]] = {
            name: Counter() for name, channel in config.tower_channels(side).items() if channel.kind == "categorical"
        }

    def texts(self) -> Iterator[str]:
        """Reads the table once: yields every text of a channel, normalised, and sets the attributes at the end.

        Titles are among the texts if pseudo-queries are made from them.
        """
        channels = self.config.tower_channels(self.side).values()
        inputs = {channel.input for channel in channels if channel.kind in ("text", "trigrams")}
        if self.side == "document" and self.config.pseudo_queries.per_document:
            inputs.add("title")
        for batch in self._batches():
            for name in sorted(inputs):
                yield from filter(None, _normalised(batch.column(name)))

    def read(self) -> "TableScan":
        """Reads the table once without its texts, and sets the attributes."""
        for _ in self._batches():
            pass
        return self

    def fill_categories(self, config: Config) -> Config:
        """A config with the most frequent values of each categorical channel of this table, normalised."""
        channels = dict(config.channels)
        for name, counter in self._values.items():
            channel = channels[name]
            if channel.kind == "categorical" and not channel.values:
                ranked = sorted(((count, value) for value, count in counter.items()), reverse=True)
                values = tuple(sorted(value for _, value in ranked[: channel.max_values]))
                channels[name] = channel.model_copy(update={"values": values})
        return config.model_copy(update={"channels": channels})

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """The batches of the table, whose ids and categories are collected."""
        channels, ids = self.config.tower_channels(self.side), []
        batches = self.table.num_batches(8_192)
        for batch in track(self.table.batches(), f"reading {self.table.kind}", batches):
            if self.side == "document":
                ids.append(batch.column("document_id"))
            for name, counter in self._values.items():
                distinct = batch.column(channels[name].input).value_counts()
                for value, count in zip(_normalised(distinct.field(0)), distinct.field(1).to_pylist(), strict=True):
                    if value:
                        counter[value] += count
            yield batch
        if self.side == "document":
            self.document_ids = unique_ids(ids, self.table)


def _normalised(column: pa.Array) -> list[str]:
    texts = normalise(tf.constant(pc.fill_null(column, "").to_pylist(), tf.string)).numpy()
    return [text.decode() for text in texts]
