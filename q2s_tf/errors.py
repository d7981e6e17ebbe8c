"""The one exception that means "your input is wrong", as opposed to "we have a bug"."""


class InputError(ValueError):
    """Something the caller gave cannot be used.

    The message is one line that names the thing, the rule, what came instead and what to do. The command lines print
    it after ``error:`` and exit with status 2; a library caller catches it like any ``ValueError``.
    """
