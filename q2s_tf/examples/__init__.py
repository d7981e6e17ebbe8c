"""Training examples: from tables to shuffled batches of preprocessed rows."""

from q2s_tf.examples.batches import Examples
from q2s_tf.examples.prepare import build_examples
from q2s_tf.examples.table_scan import TableScan

__all__ = ["Examples", "TableScan", "build_examples"]
