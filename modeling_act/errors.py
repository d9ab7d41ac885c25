"""The one error that users are meant to see: a line that says what, where, what was expected, and what to do."""


class InputError(ValueError):
    """Something the user gave is wrong: a flag, a file, a row, a checkpoint. Scripts print one line, exit 1.

    Names of files and of what is in them are the work of others: whatever a terminal would act upon is written out.
    """

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))
