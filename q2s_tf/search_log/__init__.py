"""From a search log to positives: `positives` is the definition, `build_positives` reads and writes files."""

from q2s_tf.search_log.build import Backend, build_positives
from q2s_tf.search_log.chains import Stage, duration, positives
from q2s_tf.search_log.cleaning import Report

__all__ = ["Backend", "Report", "Stage", "build_positives", "duration", "positives"]
