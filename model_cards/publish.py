"""Publishes the folder of a finished model: weights, code, processor, card, recipe and figures, in one commit.

python model_cards/publish.py outputs/student ORG/act-vitb --dry_run     # what would go, with sizes; asks no network
python model_cards/publish.py outputs/student ORG/act-vitb --private --facts model_cards/facts/act-vitb.yaml

The card is the folder's README.md, or one rendered of --facts and the folder's metrics.json.
"""

import argparse
import sys
from pathlib import Path

from card import render_card
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from modeling_act.errors import InputError
from modeling_act.hub.publishing import collect, publish


def main(arguments: list[str]) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="what a training script or `save_pretrained` left")
    parser.add_argument("name", metavar="ORG/NAME", help="where to, on the Hub")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--revision", help="branch to publish to, made where missing; default: main")
    parser.add_argument("--facts", type=Path, help="render the card of these facts; default: the folder's README.md")
    parser.add_argument("--dry_run", action="store_true", help="list what would go, and send nothing")
    flags = parser.parse_args(arguments)
    try:
        validate_repo_id(flags.name)
    except HFValidationError as error:
        raise InputError(f"{flags.name}: no name for a repository ({' '.join(str(error).split())})") from error
    metrics = flags.folder / "metrics.json"
    card = render_card(flags.facts, metrics if metrics.is_file() else None, flags.name) if flags.facts else None
    publication = collect(flags.folder, flags.name, card)
    print(publication)
    where = f"{flags.name} ({'private' if flags.private else 'public'}), branch {flags.revision or 'main'}"
    if flags.dry_run:
        print(f"dry run: nothing was sent; without --dry_run it goes to {where}")
    else:
        print(f"published as {publish(publication, flags.name, flags.private, flags.revision)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InputError, OSError) as error:
        sys.exit(f"publish.py: error: {error}")
