"""The error for wrong user input: one line that says what is wrong, where, and what to do."""

import argparse
import difflib
import re
from collections.abc import Sequence


def printable(text: str) -> str:
    """Escape the characters that a terminal would act upon."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class InputError(ValueError):
    """Error in something the user passed: a flag, a file, a row, a checkpoint. Scripts print one line and exit with 1.

    Names of files may be malicious: characters that a terminal would act upon are escaped.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def check_flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Raise an InputError for a flag that the parser does not have, and name the nearest one. A parser itself would
    first complain about required flags."""
    known = parser._option_string_actions
    spelled = [flag.removeprefix("--") for flag in known if "-" not in flag[2:]]
    for word in arguments:
        if word == "--":
            return
        flag = word.partition("=")[0]
        if flag not in known and re.fullmatch(r"--?[A-Za-z][\w-]*", flag):
            nearest = difflib.get_close_matches(flag.lstrip("-").replace("-", "_"), spelled, 1)
            hint = f"; did you mean --{nearest[0]}?" if nearest else ""
            raise InputError(f"unrecognized arguments: {flag}{hint}")
