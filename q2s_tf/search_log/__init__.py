"""From a search log to positives: `positives` is the definition, `build_positives` the whole way on disk."""

from q2s_tf.search_log.build import build_positives
from q2s_tf.search_log.chains import duration, positives
from q2s_tf.search_log.report import Report

__all__ = ["Report", "build_positives", "duration", "positives"]
