"""The error for wrong user input: one line that says what is wrong, where, and what to do."""


class InputError(ValueError):
    """Error in something the user passed: a flag, a file, a row, a checkpoint. Scripts print one line and exit with 1.

    Names of files may be malicious: characters that a terminal would act upon are escaped.
    """

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))
