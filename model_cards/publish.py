"""Publish the folder of a finished model: weights, code, processor, card, recipe and metrics, in one commit.

python model_cards/publish.py outputs/student ORG/act-vitb --dry_run     # list the files and their sizes
python model_cards/publish.py outputs/student ORG/act-vitb --private --revision v2
"""

import argparse
import sys
from pathlib import Path

from modeling_act.errors import InputError
from modeling_act.hub.publishing import check_folder, publish


def main(arguments: list[str]) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="output folder of a training script or of `save_pretrained`")
    parser.add_argument("name", metavar="ORG/NAME", help="repository on the Hub, created where missing")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--revision", help="branch to publish to, created where missing; default: main")
    parser.add_argument("--dry_run", action="store_true", help="list what would be sent, and send nothing")
    flags = parser.parse_args(arguments)
    files = check_folder(flags.folder, flags.name)
    for name, file in files.items():
        size = len(file) if isinstance(file, bytes) else file.stat().st_size
        print(f"{size:>15,}  {name}")
    if flags.dry_run:
        print(f"dry run: {len(files)} files for {flags.name}, nothing was sent")
    else:
        print(f"published as {publish(flags.folder, flags.name, flags.private, flags.revision)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InputError, OSError) as error:
        sys.exit(f"publish.py: error: {error}")
