"""Published search data sets, and rated pairs of your own, as documents, judgements and positives."""

from q2s_tf.datasets.published import Name, import_dataset
from q2s_tf.datasets.split import split_judgements

__all__ = ["Name", "import_dataset", "split_judgements"]
