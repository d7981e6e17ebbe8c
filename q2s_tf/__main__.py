"""The console script `q2s`, and `python -m q2s_tf`."""

import sys


def main() -> None:
    """Runs `q2s_tf.commands`; Ctrl-C during the imports ends the program without a traceback."""
    try:
        from q2s_tf.commands import main
    except KeyboardInterrupt:
        sys.exit(130)
    main()


if __name__ == "__main__":
    main()
