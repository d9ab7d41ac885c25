"""Page that shows what ACT models see in a point cloud or mesh.

The folder is a Hugging Face Space: the variables ACT_STUDENT, ACT_CLASSIFIER ... replace the flags.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

try:
    import gradio as gr
    import safehttpx
except ModuleNotFoundError as error:
    sys.exit(f'app.py: error: the page needs {error.name}: in the clone, pip install -c constraints.txt -e ".[app]"')
import predictions
from components import CARDS, PANELS, THEME, VIEWER, cloud_view, long_name, message, pack
from predictions import PARTS, PLAIN, SIMILARITY, Models, load_models
from reading import HAS_FORKSERVER, MAX_BYTES, OpenCloud, open_cloud, open_upload

from modeling_act.errors import InputError
from modeling_act.readers.cloud import CLOUD_SUFFIXES

APP = Path(__file__).resolve().parent
SAMPLES = sorted((APP / "samples").glob("*.ply"))
TITLE = "What a 3D Transformer sees"
FLAGS = {
    "student": "features and similarity of points",
    "classifier": "class probabilities",
    "segmenter": "parts in colors",
    "teacher": "reconstructions",
    "pretraining": "with its teacher: reconstructions from the visible groups",
    "index": "folder of a ShapeIndex, searched for the nearest shapes",
    "shapes": "folder of the files that the index names, to show them",
}
HEAD = f"""<h1>{TITLE}</h1><p>ACT models look at a mesh or point cloud: its class, its parts, and which of its points
are alike.</p><div class="models">%s</div>%s"""
MORE = """<details><summary>Not shown: %s</summary><p>Each takes a model: <code>python app/app.py %s</code>, in a Space
the variables %s. <code>app/README.md</code> says how to train them.</p></details>"""
SECTIONS = {"classifier": "classes", "segmenter": "parts", "teacher": "reconstructions"}
FAR = '<p class="hint">None of these is close: unrelated shapes also reach cosines up to %s.</p>'


@dataclass
class Session:
    """State of one visitor."""

    cloud: OpenCloud
    picked: int = 0
    seed: int = 0
    hits: list[str] = field(default_factory=list)


@contextmanager
def card(title: str, visible: bool = True) -> Iterator[None]:
    with gr.Column(elem_classes="card", visible=visible):
        gr.HTML(f"<h2>{title}</h2>")
        yield


class Page:
    """Layout and event handlers of the page."""

    def __init__(self, models: Models):
        self.models = models
        suffixes, bare = list(CLOUD_SUFFIXES), {"show_label": False, "container": False}
        formats = ", ".join(suffix[1:] for suffix in suffixes)
        click = ", click a point to see which others are like it" if models.student else ""
        with gr.Blocks(delete_cache=(600, 3600), title=TITLE, analytics_enabled=False, fill_width=True) as self.blocks:
            self.session = gr.State(None, time_to_live=3600)  # a Session, once there is a cloud
            gr.HTML(head_of(models), elem_id="head")
            with gr.Row(elem_id="work", equal_height=False):
                with gr.Column(scale=2, min_width=240, elem_id="inputs"):
                    with card("Your mesh or cloud"):
                        self.upload = gr.File(file_types=suffixes, height=128, elem_id="upload", **bare)
                        self.z_up = gr.Checkbox(label="z is up in my files", elem_id="z-up", container=False)
                        gr.HTML(f'<p class="hint">{formats}; up to {MAX_BYTES >> 20} MB</p>')
                    with card("Or a sample"):
                        self.samples = cloud_view(CARDS, "samples")
                with gr.Column(scale=7, min_width=320, elem_classes="card"):
                    with gr.Row(equal_height=True):
                        choices = {"choices": models.colorings, "value": PLAIN, "visible": len(models.colorings) > 1}
                        self.coloring = gr.Radio(**choices, elem_id="coloring", scale=3, **bare)
                        choices = {"choices": models.categories, "visible": False}
                        self.category = gr.Dropdown(**choices, elem_id="category", scale=1, min_width=140, **bare)
                    self.message = gr.HTML(elem_id="message", visible=False)
                    self.view = cloud_view(VIEWER, "viewer")
                    gr.HTML(f'<p id="hint">Drag to rotate, pinch or click and wheel to zoom{click}.</p>')
                with gr.Column(scale=3, min_width=280, visible=bool(models.classifier or models.index)):
                    with card("Class", bool(models.classifier)):
                        self.classes = gr.Label(elem_id="classes", show_heading=False, **bare)
                    with card("Nearest shapes", bool(models.index)):
                        self.far = gr.HTML(elem_id="far", visible=False)
                        self.hits = cloud_view(CARDS, "hits")
                        self.hit_names = gr.HTML(elem_id="hit-names", visible=False)
            with card("Reconstruction", bool(models.teacher)):
                self.resample = gr.Button("Hide other groups", size="sm", visible=bool(models.pretraining))
                self.rebuilt = cloud_view(PANELS, "rebuilt")
            self.listen()

    def listen(self) -> None:
        limit = {"concurrency_id": "cpu", "concurrency_limit": 2}
        quiet = {"show_progress": "hidden", "api_visibility": "private", **limit}
        busy = {**quiet, "show_progress": "minimal", "show_progress_on": self.view}  # large models take seconds
        slow = {**busy, "concurrency_id": "files"}  # a slow file delays no other event
        inputs = [self.session, self.coloring, self.category]
        outputs = [self.session, self.message, self.classes, self.view, self.coloring, self.category]
        self.blocks.load(sample_cards, None, self.samples, **quiet)
        for opened in (
            self.blocks.load(self.open_sample, inputs, outputs, **quiet),
            self.samples.select(self.open_sample, inputs, outputs, **busy),
            self.hits.select(self.open_hit, inputs, outputs, **busy),
            self.upload.upload(self.open_upload, [*inputs, self.upload, self.z_up], [*outputs, self.upload], **slow),
        ):
            if self.models.index:
                opened.success(self.find, self.session, [self.far, self.hits, self.hit_names], **quiet)
            if self.models.teacher:
                opened.success(self.rebuild, self.session, self.rebuilt, **quiet)
        self.coloring.input(self.recolor, inputs, outputs, **busy)
        self.category.input(self.recolor, inputs, outputs, **busy)
        self.view.select(self.pick, inputs, outputs, **busy)
        self.resample.click(self.hide_others, self.session, self.rebuilt, **quiet)

    def open_upload(self, session, coloring, category, path: str | None, z_up: bool):
        if not path:
            return gr.skip()
        return {**self.open(coloring, category, open_upload, path, z_up), self.upload: None}  # ready for the next

    def open_sample(self, session, coloring, category, event: gr.EventData):
        return self.open(coloring, category, open_cloud, SAMPLES[index_of(event, SAMPLES) or 0])  # 0 at the start

    def open_hit(self, session, coloring, category, event: gr.EventData):
        index = index_of(event, session.hits if session else [])
        path = None if index is None else predictions.shape_path(self.models, session.hits[index])
        return self.open(coloring, category, open_cloud, path) if path else gr.skip()

    def open(self, coloring: str, category: str | None, read: Callable[..., OpenCloud], *file) -> dict:
        try:
            session = Session(read(*file))
        except InputError as error:
            line = {self.message: message(str(error), name=Path(file[0]).name), self.session: None}
            return {**line, self.classes: {}, self.view: {}, self.category: gr.update(visible=False)}
        cloud, categories = session.cloud, self.models.categories
        classes = predictions.classify(self.models, cloud) if self.models.classifier else {}
        category = next((name for name in (*list(classes)[:1], category, *categories) if name in categories), None)
        note = f"{cloud.total:,} points; {len(cloud.points):,} of them are used." * (cloud.total > len(cloud.points))
        views = self.view_of(session, PLAIN if coloring == SIMILARITY else coloring, category)
        return {self.session: session, self.message: message(note, "note"), self.classes: classes, **views}

    def view_of(self, session: Session, coloring: str, category: str | None) -> dict:
        cloud = predictions.color(self.models, session.cloud, coloring, session.picked, category)
        choice = gr.update(value=category, visible=coloring == PARTS and bool(self.models.categories))
        packed = pack([cloud], picked=session.picked if coloring == SIMILARITY else None)
        return {self.view: packed, self.coloring: coloring, self.category: choice}

    def recolor(self, session, coloring, category):
        if session is None or coloring not in self.models.colorings:
            return gr.skip()
        return self.view_of(session, coloring, category)

    def pick(self, session, coloring, category, event: gr.EventData):
        index = index_of(event, session.cloud.points if session else [])
        if index is None or not self.models.student:
            return gr.skip()
        session.picked = index
        return {self.session: session, **self.view_of(session, SIMILARITY, category)}

    def find(self, session):
        if session is None:
            return gr.update(visible=False), {}, gr.update(visible=False)
        hits, limit = predictions.neighbors(self.models, session.cloud), self.models.min_cosine
        is_far = limit is not None and hits[0][1] < limit
        far = gr.update(value=FAR % limit if is_far else "", visible=is_far)
        drawn = [hit for hit in hits if hit[2] is not None]
        session.hits = [name for name, _, _ in drawn]
        cards = pack([shape for _, _, shape in drawn], [f"{cosine:.3f}" for _, cosine, _ in drawn]) if drawn else {}
        names = [f"{long_name(name)} {cosine:.3f}" for name, cosine, shape in hits if shape is None]
        names = "".join(f"<p>{line}</p>" for line in names)
        return far, cards, gr.update(value=names, visible=bool(names))

    def rebuild(self, session):
        if session is None:
            return {}
        return pack(predictions.rebuild(self.models, session.cloud, session.seed), same_frame=True)

    def hide_others(self, session):
        if session is not None:
            session.seed += 1
        return self.rebuild(session)


def head_of(models: Models) -> str:
    """Title, the models as chips, and how the sections that have none are added."""
    names = {flag: Path(name).name if Path(name).exists() else name for flag, name in models.names.items()}
    if models.unpacked:
        names |= {"index": f"{len(models.index)} generated shapes", "shapes": None}
    chips = "".join(f"<span><b>{flag}</b>{long_name(names[flag])}</span>" for flag in FLAGS if names.get(flag))
    missing = [flag for flag in SECTIONS if flag not in names]
    sections = ", ".join(SECTIONS[flag] for flag in missing)
    command = " ".join(f"--{flag} FOLDER_OR_ID" for flag in missing)
    variables = ", ".join(f"<code>ACT_{flag.upper()}</code>" for flag in missing)
    return HEAD % (chips, MORE % (sections, command, variables) if missing else "")


def sample_cards() -> dict:
    clouds = [predictions.thinned(open_cloud(path).points, path.stem, 1500) for path in SAMPLES]
    return pack(clouds, captions=[""] * len(clouds))


def index_of(event: gr.EventData, items) -> int | None:
    """Valid index of an event, if it has one: anybody can send any event."""
    index = event._data.get("index") if isinstance(event._data, dict) else None
    return index if type(index) is int and 0 <= index < len(items) else None


async def refuse_address(*_, **__) -> None:
    raise gr.Error("This page opens uploaded files only.", print_exception=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag, description in FLAGS.items():
        parser.add_argument(f"--{flag}", default=os.environ.get(f"ACT_{flag.upper()}"), help=description)
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT", 7860)))
    options = parser.parse_args()
    names = {flag: getattr(options, flag) for flag in FLAGS}
    if HAS_FORKSERVER:
        forkserver.ensure_running()  # it imports the readers while the models load
    # Gradio downloads any public address for any visitor who asks, by these two functions.
    safehttpx.get = safehttpx.async_validate_url = refuse_address
    try:
        blocks = Page(load_models(names)).blocks
    except InputError as error:
        sys.exit(f"app.py: error: {error}")
    server = {"server_name": options.host, "server_port": options.port, "share": False, "ssr_mode": False}
    limits = {"max_file_size": MAX_BYTES, "state_session_capacity": 200, "enable_monitoring": False}
    look = {"theme": THEME, "css_paths": APP / "page.css", "footer_links": []}
    # Without `quiet` Gradio advises to make the page public.
    blocks.queue(max_size=64, api_open=False).launch(quiet=True, prevent_thread_lock=True, **look, **server, **limits)
    print(f"The page is at {blocks.local_url} until Ctrl+C ends it.", flush=True)
    blocks.block_thread()
