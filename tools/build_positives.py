#!/usr/bin/env python
"""The same as `q2s build-positives`."""

import sys

try:
    from q2s_tf.cli import run
    from q2s_tf.commands.data import build_positives as main
except KeyboardInterrupt:  # during the imports
    sys.exit(130)

if __name__ == "__main__":
    run(main)
