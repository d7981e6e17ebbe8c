#!/usr/bin/env python
"""The same as `q2s publish`."""

import sys

try:
    from q2s_tf.cli import run
    from q2s_tf.commands.scaling import publish as main
except KeyboardInterrupt:  # during the imports
    sys.exit(130)

if __name__ == "__main__":
    run(main)
