#!/usr/bin/env python
"""The same as `q2s serve`."""

from q2s_tf.cli import run
from q2s_tf.commands.deployment import serve as main

if __name__ == "__main__":
    run(main)
