"""The one error that users are meant to see: a line that says what, where, what was expected, and what to do."""


class InputError(ValueError):
    """Something the user gave is wrong: a flag, a file, a row, a checkpoint. Scripts print one line, exit 1."""
