#!/usr/bin/env python
"""The same as `q2s demo-app`."""

import sys

try:
    from q2s_tf.cli import run
    from q2s_tf.commands.deployment import demo_app as main
except KeyboardInterrupt:  # during the imports
    sys.exit(130)

if __name__ == "__main__":
    run(main)
