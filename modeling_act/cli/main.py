"""What a user does from a shell: `python -m modeling_act COMMAND --help`.

info         what a model is
encode       clouds -> vectors, and an index to search
classify     clouds -> their likeliest classes
segment      clouds -> a label for every point, as colored PLY
reconstruct  what a teacher makes of clouds, or draws of what a student did not see
similar      clouds -> the nearest shapes of an index
view         clouds -> one HTML page that turns them
export       a model -> ONNX, or a program of torch.export
convert      released checkpoints -> folders for from_pretrained
"""

import argparse
import sys


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m modeling_act", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    lines = dict(line.split(maxsplit=1) for line in __doc__.split("\n\n")[1].splitlines())
    named = {name: commands.add_parser(name, help=text, description=text) for name, text in lines.items()}
    for name in ("encode", "classify", "segment", "reconstruct", "similar", "view"):
        add_inputs(named[name])
    for name in ("encode", "classify", "segment", "reconstruct", "similar"):
        named[name].add_argument("--unit", help="m, cm, mm, in ...: of these clouds, if not that of training")
    for name in ("info", "export"):
        named[name].add_argument("model", help="folder or Hub id")
        named[name].add_argument("--revision", help="branch, tag or commit on the Hub")
    for name in ("encode", "classify", "segment", "similar"):
        named[name].add_argument("--model", required=name != "similar", help="folder or Hub id")
        named[name].add_argument("--revision", help="branch, tag or commit on the Hub")
    for name in ("encode", "classify", "segment", "similar", "reconstruct"):
        named[name].add_argument("--device", help="cpu, cuda, cuda:1 ...; default: cpu")
    for name in ("encode", "classify", "similar"):
        named[name].add_argument("--batch_size", type=int, default=32)
        named[name].add_argument("--num_workers", type=int, default=0, help="processes that read and sample clouds")
    add_own(named)
    return parser


def add_inputs(command: argparse.ArgumentParser) -> None:
    command.add_argument("inputs", nargs="+", help="files, folders or http(s) addresses of clouds and meshes")
    command.add_argument("--seed", type=int, default=0, help="decides which points are taken")
    command.add_argument("--up_axis", choices=("y", "z"), help="of these clouds, if not that of training")
    command.add_argument("--skip_bad", action="store_true", help="go on without clouds that cannot be read")
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def add_own(named: dict[str, argparse.ArgumentParser]) -> None:
    """What only one command takes."""
    named["encode"].add_argument("--out", help="name and vector of each cloud, as .npz, .json or .parquet")
    named["encode"].add_argument("--index", help="folder for an index that `similar` searches")
    named["classify"].add_argument("--top_k", type=int, default=5, help="how many classes to show")
    named["classify"].add_argument("--out", help="also as .npz, .json or .parquet, with all probabilities")
    named["segment"].add_argument("--out", required=True, help="folder for the results")
    named["segment"].add_argument("--category", help="what the objects are, for a model of parts")
    named["segment"].add_argument("--votes", type=int, default=1, help="how often each point is seen")
    named["segment"].add_argument("--npz", action="store_true", help="also points, labels and scores as .npz")
    named["reconstruct"].add_argument("--teacher", help="folder or Hub id of an ACTTeacher")
    named["reconstruct"].add_argument("--student", help="of an ACTStudentForPreTraining, which sees a part only")
    named["reconstruct"].add_argument("--out", required=True, help="folder for input, visible part and result, as PLY")
    named["similar"].add_argument("--index", required=True, help="folder that `encode --index` made")
    named["similar"].add_argument("--count", type=int, default=10, help="how many shapes")
    named["view"].add_argument("--out", default="clouds.html", help="the page; default: clouds.html")
    named["view"].add_argument("--title", help="of the page")
    named["export"].add_argument("out", help="FILE.onnx or FILE.pt2")


def main(arguments: list[str]) -> int:
    """Returns the exit code; what the user can mend is one line on stderr."""
    if arguments[:1] == ["convert"]:
        from ..convert.official_checkpoint import main as convert

        return convert(arguments[1:])
    options = make_parser().parse_args(arguments or ["--help"])
    try:
        from modeling_act.cli.commands import run  # takes seconds, which no word of help should cost

        run(options)
    except (ValueError, OSError) as error:
        print(f"modeling_act {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
