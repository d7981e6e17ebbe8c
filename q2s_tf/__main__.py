"""`python -m q2s_tf`, the same as the console script `q2s`."""

from q2s_tf.commands import main

main()
