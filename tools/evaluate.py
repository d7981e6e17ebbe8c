#!/usr/bin/env python
"""The same as `q2s evaluate`."""

from q2s_tf.cli import run
from q2s_tf.commands.modelling import evaluate as main

if __name__ == "__main__":
    run(main)
