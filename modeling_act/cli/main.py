"""The command line: `act COMMAND --help`, or `python -m modeling_act COMMAND --help`."""

import argparse
import sys
from pathlib import Path

from ..errors import InputError, check_flags

MODEL_HELP, TABLE_HELP = "folder or Hub id", "table to write: .npz, .json or .parquet"


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line."""

    def parse_known_args(self, args=None, namespace=None):
        if self._subparsers is None:  # the flags of a command are those of its own parser
            try:
                check_flags(self, args)
            except InputError as error:
                self.error(str(error))
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def make_parents(num_inputs: str = "+") -> list[argparse.ArgumentParser]:
    """Make the flags that commands share: of clouds, of inference on them, of inference in batches, and of the Hub."""
    clouds = argparse.ArgumentParser(add_help=False)
    clouds.add_argument("inputs", nargs=num_inputs, help="files of clouds and meshes, and folders of them")
    clouds.add_argument("--seed", type=int, default=0, help="seed of the points that are sampled")
    clouds.add_argument("--up_axis", choices=("y", "z"), help="axis that is up in these clouds, if not as in training")
    bad = clouds.add_mutually_exclusive_group()
    bad.add_argument("--skip_bad", action="store_true", help="exit with 0 although some clouds cannot be read")
    bad.add_argument("--strict", action="store_true", help="stop at the first cloud that cannot be read")
    clouds.add_argument("--quiet", action="store_true", help="no progress bar")

    inference = argparse.ArgumentParser(add_help=False, parents=[clouds])
    inference.add_argument("--unit", help="unit of these clouds, if not as in training: m, cm, mm, in ...")
    inference.add_argument("--device", help="cpu, cuda, cuda:1 ...; default: cpu")

    batches = argparse.ArgumentParser(add_help=False, parents=[inference])
    batches.add_argument("--batch_size", type=int, default=32)
    batches.add_argument("--num_workers", type=int, default=0, help="processes that read and sample clouds")

    revision = argparse.ArgumentParser(add_help=False)
    revision.add_argument("--revision", help="branch, tag or commit on the Hub")
    return [clouds, inference, batches, revision]


def program_name() -> str:
    return "act" if Path(sys.argv[0]).stem == "act" else "python -m modeling_act"


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=program_name(), description="Models of ACT on your clouds.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    clouds, inference, batches, revision = make_parents()

    def add(name: str, description: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=description, description=description, parents=parents)

    info = add("info", "describe a model", revision)
    info.add_argument("model", help=MODEL_HELP)

    encode = add("encode", "clouds -> vectors, and an index to search", batches, revision)
    encode.add_argument("--out", help=TABLE_HELP)
    encode.add_argument("--index", help="folder for an index that `similar` searches")
    encode.add_argument(
        "--space",
        choices=("student", "teacher"),
        default="student",
        help="space of the vectors: the student's own, or its first teacher's, which CLIP and SigLIP share with text",
    )

    encode.add_argument(
        "--samples", type=int, help="selections of a cloud's points to average; default: as many as the model says"
    )

    classify = add("classify", "clouds -> their most likely classes", batches, revision)
    classify.add_argument("--top_k", type=int, default=5, help="number of classes to print")
    classify.add_argument("--out", help=f"{TABLE_HELP}; with all probabilities, in .json by class")

    segment = add("segment", "clouds -> a label for every point, as colored PLY", inference, revision)
    segment.add_argument("--out", required=True, help="folder for the results")
    segment.add_argument("--category", help="category of the objects, for a part segmentation model")
    segment.add_argument("--votes", type=int, default=1, help="number of predictions averaged for each point")
    segment.add_argument("--npz", action="store_true", help="also write points, labels and scores as .npz")

    reconstruct = add("reconstruct", "clouds -> their reconstruction by a teacher, or a masked student", inference)
    reconstruct.add_argument("--teacher", help="folder or Hub id of an ACTTeacher")
    reconstruct.add_argument("--student", help="folder or Hub id of an ACTStudentForPreTraining")
    reconstruct.add_argument("--out", required=True, help="folder for input, visible part and reconstruction, as PLY")

    similar = add("similar", "clouds or a text -> the nearest shapes of an index", make_parents("*")[2], revision)
    similar.add_argument("--text", help="words to search by, in place of clouds; needs `encode --space teacher`")
    similar.add_argument("--text_model", help=f"{MODEL_HELP} that embeds --text; default: the one the student names")
    similar.add_argument("--model", help=f"{MODEL_HELP}; default: the model that made the index")
    similar.add_argument("--index", required=True, help="folder that `encode --index` made")
    similar.add_argument("--count", type=int, default=10, help="number of shapes for each cloud or text")

    view = add("view", "clouds -> one HTML page to view them in 3D", clouds)
    view.add_argument("--out", default="clouds.html", help="the page; default: clouds.html")
    view.add_argument("--title", help="title of the page")

    export = add("export", "a model -> ONNX, or a torch.export program", revision)
    export.add_argument("model", help=MODEL_HELP)
    export.add_argument("out", help="FILE.onnx or FILE.pt2")

    encode.add_argument("--model", default="act-tiny", help=f"{MODEL_HELP}; default: act-tiny, of this package")
    for command in (classify, segment):
        command.add_argument("--model", required=True, help=MODEL_HELP)
    add("convert", "released checkpoints -> folders for from_pretrained")
    return parser


def run_command() -> int:
    """The command `act`, which an installation brings."""
    return main(sys.argv[1:])


def main(arguments: list[str]) -> int:
    """Run a command and return its exit code; errors that the user can fix are one line on stderr."""
    if arguments[:1] == ["convert"]:
        from ..convert.official_checkpoint import main as convert

        return convert(arguments[1:], f"{program_name()} convert")
    options = make_parser().parse_args(arguments or ["--help"])
    try:
        from .commands import run  # imports torch and transformers, which takes seconds; --help does not need them

        return run(options)
    except (ValueError, OSError) as error:
        print(f"modeling_act {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
