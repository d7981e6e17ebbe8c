#!/usr/bin/env python
"""The same as `q2s split-judgements`."""

from q2s_tf.cli import run
from q2s_tf.commands.data import split_judgements as main

if __name__ == "__main__":
    run(main)
