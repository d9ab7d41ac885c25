"""Renders a model's card from its facts, and from the figures of a run where there was one.

python model_cards/render.py model_cards/facts/act-vitb.yaml                     # nothing run: every figure says so
python model_cards/render.py model_cards/facts/act-vitb.yaml --metrics outputs/student --output card.md
"""

import argparse
import sys
from pathlib import Path

from card import render_card

from modeling_act.errors import InputError


def main(arguments: list[str]) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("facts", type=Path, help="a file of model_cards/facts")
    parser.add_argument("--metrics", type=Path, help="metrics.json of a run, or the folder that holds it")
    parser.add_argument("--name", help="ORGANIZATION/NAME where the model is published; none: it is not")
    parser.add_argument("--output", type=Path, help="where to write the card; default: it is printed")
    flags = parser.parse_args(arguments)
    metrics = flags.metrics / "metrics.json" if flags.metrics and flags.metrics.is_dir() else flags.metrics
    card = render_card(flags.facts, metrics, flags.name)
    if flags.output:
        flags.output.write_text(card, encoding="utf-8")
    else:
        print(card)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InputError, OSError) as error:
        sys.exit(f"render.py: error: {error}")
