"""A page that shows what models of ACT see in a point cloud or mesh.

A Hugging Face Space as it lies here: the variables ACT_STUDENT, ACT_CLASSIFIER ... say what the flags say.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from multiprocessing import forkserver
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

try:
    import gradio as gr
except ModuleNotFoundError as error:
    sys.exit(f'app.py: error: the page needs {error.name}: in the clone, pip install -c constraints.txt -e ".[app]"')
import numpy as np
from components import CARDS, PAGE_STYLE, PICTURES, THEME, VIEWER, bars, cloud_view, message, packed
from predictions import (
    PARTS,
    PLAIN,
    SIMILARITY,
    Models,
    categories,
    classify,
    color,
    load_models,
    neighbors,
    rebuild,
    shape_path,
)
from reading import HAS_SERVER, MOST_BYTES, OpenCloud, open_cloud, open_upload
from starlette.middleware import Middleware

from modeling_act.errors import InputError
from modeling_act.readers.cloud import CLOUD_SUFFIXES
from modeling_act.viewer.page import ViewerCloud

SAMPLES = sorted((Path(__file__).resolve().parent / "samples").glob("*.ply"))
FLAGS = {
    "student": "features of points, and what is near to what",
    "classifier": "class probabilities",
    "segmenter": "parts in colors",
    "teacher": "reconstructions",
    "pretraining": "with its teacher: reconstructions from a fifth of the cloud",
    "index": "folder of a ShapeIndex, searched for the nearest shapes",
    "shapes": "folder of the files that the index names, to show them",
}
NO_MODEL = "No model is loaded. <code>make demo</code> trains a teacher and a student in minutes; then <code>python \
app/app.py --teacher demo_output/teacher --pretraining demo_output/distilled</code> shows what they see."
AS_CLASSIFIED = "as classified"


@dataclass
class Session:
    """What one visitor looks at."""

    cloud: OpenCloud
    picked: int = 0
    seed: int = 0
    classes: list[tuple[str, float]] = field(default_factory=list)
    hits: list[str] = field(default_factory=list)


def uploads_only(component: gr.File) -> gr.File:
    """Gradio would also fetch an address that a forged request names in place of a file."""
    move = component.async_move_resource_to_block_cache

    async def move_upload(path: str | Path | None) -> str | None:
        if str(path).lower().startswith(("http:", "https:")):
            raise gr.Error("This page opens uploaded files only.", print_exception=False)
        return await move(path)

    component.async_move_resource_to_block_cache = move_upload
    return component


class NoProxy:
    """Gradio's server fetches any public address for whoever asks for /gradio_api/file=http...; this one does not."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        path = scope.get("path", "").lower()
        if scope["type"] == "http" and ("file=http" in path or "proxy=" in path):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self.app(scope, receive, send)


def head(models: Models, names: dict[str, str | None]) -> str:
    chips = "".join(
        f"<span><b>{flag}</b> {escape(Path(names[flag]).name if Path(names[flag]).exists() else names[flag])}</span>"
        for flag in FLAGS
        if names.get(flag) and flag != "shapes"
    )
    missing = [f"{what} (--{flag})" for flag, what in FLAGS.items() if flag != "shapes" and not getattr(models, flag)]
    if not chips:
        chips = f'<span class="none">{NO_MODEL}</span>'
    elif missing:
        chips += f'<span class="none" title="{escape("; ".join(missing))}">{len(missing)} more could be loaded</span>'
    return (
        "<h1>What a 3D Transformer sees</h1><p>ACT models look at a mesh or point cloud: its class, its parts, and "
        f'which of its points are alike.</p><div class="models">{chips}</div>'
    )


class Page:
    """The page's handlers, over the models it was started with."""

    def __init__(self, models: Models, names: dict[str, str | None]):
        self.models, self.names, self.categories = models, names, categories(models)
        known = models.classifier.config.id2label.values() if models.classifier else ()
        self.follows_classifier = bool(self.categories) and set(known) >= set(self.categories)

    def build(self) -> gr.Blocks:
        models = self.models
        with gr.Blocks(
            delete_cache=(600, 3600), title="What a 3D Transformer sees", analytics_enabled=False, fill_width=True
        ) as page:
            self.session = gr.State(None, time_to_live=3600)  # a Session, from the first cloud on
            gr.HTML(head(models, self.names), elem_id="head")
            with gr.Row(elem_id="work", equal_height=False):
                with gr.Column(scale=2, min_width=240, elem_id="inputs"):
                    self.build_inputs()
                with gr.Column(scale=7, min_width=320, elem_classes="card"):
                    self.build_viewer()
                with gr.Column(scale=3, min_width=280, visible=bool(models.classifier or models.index)):
                    self.build_answers()
            self.build_reconstruction()
            self.listen(page)
        return page

    def build_inputs(self) -> None:
        with gr.Column(elem_classes="card"):
            gr.HTML("<h2>Your mesh or cloud</h2>")
            upload = gr.File(
                show_label=False, file_types=list(CLOUD_SUFFIXES), height=128, container=False, elem_id="upload"
            )
            self.upload = uploads_only(upload)
            self.z_up = gr.Checkbox(label="z is up in my files", elem_id="z-up", container=False)
            gr.HTML(f'<p class="hint">{", ".join(s[1:] for s in CLOUD_SUFFIXES)}; up to {MOST_BYTES >> 20} MB</p>')
        with gr.Column(elem_classes="card"):
            gr.HTML("<h2>Or a sample</h2>")
            self.samples = cloud_view(CARDS, elem_id="samples")

    def build_viewer(self) -> None:
        with gr.Row(equal_height=True):
            bare = {"show_label": False, "container": False}
            colorings, choices = self.models.colorings, [AS_CLASSIFIED] * self.follows_classifier + self.categories
            self.coloring = gr.Radio(
                colorings, value=PLAIN, label="Colors show", elem_id="coloring", visible=len(colorings) > 1,
                scale=3, **bare,
            )  # fmt: skip
            self.category = gr.Dropdown(
                choices, value=choices[0] if choices else None, label="What the object is", elem_id="category",
                visible=False, scale=1, min_width=140, **bare,
            )  # fmt: skip
        self.message = gr.HTML(elem_id="message", visible=False)
        self.view = cloud_view(VIEWER, elem_id="viewer")
        click = ", click a point to see which others are like it" if self.models.student else ""
        gr.HTML(f'<p id="hint">Drag to turn, pinch or click and wheel to zoom{click}.</p>')

    def build_answers(self) -> None:
        with gr.Column(elem_classes="card", visible=bool(self.models.classifier)):
            gr.HTML("<h2>Class</h2>")
            self.classes = gr.HTML(elem_id="classes")
        with gr.Column(elem_classes="card", visible=bool(self.models.index)):
            gr.HTML("<h2>Nearest shapes</h2>")
            self.hits = cloud_view(CARDS, elem_id="hits")
            self.hit_names = gr.HTML(elem_id="hit-names", visible=False)

    def build_reconstruction(self) -> None:
        with gr.Column(elem_classes="card", visible=bool(self.models.teacher)):
            with gr.Row(equal_height=True):
                gr.HTML("<h2>Reconstruction</h2>")
                self.again = gr.Button(
                    "Hide other parts", size="sm", scale=0, min_width=170, visible=bool(self.models.pretraining)
                )
            self.rebuilt = cloud_view(PICTURES, elem_id="rebuilt")

    # Events ----------------------------------------------------------------------------------------------------------

    def listen(self, page: gr.Blocks) -> None:
        """No handler is an endpoint that other programs are invited to call."""
        hidden = {"show_progress": "hidden", "api_visibility": "private"}
        options = {**hidden, "concurrency_limit": 2, "concurrency_id": "cpu"}
        told = {**options, "show_progress": "minimal", "show_progress_on": self.view}  # large models take seconds
        apart = {**told, "concurrency_id": "files"}  # whoever waits for a slow file keeps no one else waiting
        looks = [self.session, self.coloring, self.category]
        shown = [self.session, self.message, self.classes, self.view, self.coloring, self.category]
        page.load(lambda: packed(*sample_cards()), None, self.samples, **options)
        for opened in (
            page.load(self.open_sample, looks, shown, **options),
            self.samples.select(self.open_sample, looks, shown, **told),
            self.hits.select(self.open_hit, looks, shown, **told),
            self.upload.upload(self.open_upload, [*looks, self.upload, self.z_up], shown, **apart),
        ):
            if self.models.index:
                opened.success(self.find, self.session, [self.hits, self.hit_names], **options)
            if self.models.teacher:
                opened.success(self.rebuild, self.session, self.rebuilt, **options)
        self.coloring.input(self.recolor, looks, shown, **told)
        self.category.input(self.recolor, looks, shown, **told)
        self.view.select(self.pick, looks, shown, **told)
        self.again.click(self.hide_others, self.session, self.rebuilt, **options)

    def open_upload(self, session, coloring, category, path: str | None, z_up: bool):
        return self.open(coloring, category, open_upload, path, z_up) if path else gr.skip()

    def open_sample(self, session, coloring, category, event: gr.EventData):
        place = number_of(event, len(SAMPLES)) or 0  # on loading the page: the first
        return self.open(coloring, category, open_cloud, SAMPLES[place])

    def open_hit(self, session, coloring, category, event: gr.EventData):
        place = number_of(event, 0 if session is None else len(session.hits))
        path = None if place is None else shape_path(self.models, session.hits[place])
        return self.open(coloring, category, open_cloud, path) if path else gr.skip()

    def open(self, coloring: str, category: str | None, read: Callable[..., OpenCloud], *file) -> dict:
        try:
            session = Session(read(*file))
        except InputError as error:
            return {self.message: message(str(error))}
        cloud = session.cloud
        if self.models.classifier:
            session.classes = classify(self.models, cloud)
        thinned = f"{cloud.total:,} points; {len(cloud.points):,} of them are used."
        return {
            self.session: session,
            self.message: message(thinned if cloud.total > len(cloud.points) else "", "note"),
            self.classes: bars(session.classes),
            **self.view_of(session, PLAIN if coloring == SIMILARITY else coloring, category),
        }

    def view_of(self, session: Session, coloring: str, category: str | None) -> dict:
        told = session.classes[0][0] if category == AS_CLASSIFIED and session.classes else category
        shown = color(self.models, session.cloud, coloring, session.picked, told)
        return {
            self.view: packed([shown], picked=session.picked if coloring == SIMILARITY else None),
            self.coloring: coloring,
            self.category: gr.update(visible=coloring == PARTS and bool(self.categories)),
        }

    def recolor(self, session, coloring, category):
        if session is None or coloring not in self.models.colorings:
            return gr.skip()
        return self.view_of(session, coloring, category)

    def pick(self, session, coloring, category, event: gr.EventData):
        place = number_of(event, 0 if session is None else len(session.cloud.points))
        if place is None or not self.models.student:
            return gr.skip()
        session.picked = place
        return {self.session: session, **self.view_of(session, SIMILARITY, category)}

    def find(self, session):
        if session is None:
            return gr.skip()
        found = neighbors(self.models, session.cloud)
        drawn = [(shape, f"{cosine:.3f}") for _, cosine, shape in found if shape is not None]
        session.hits = [name for name, _, shape in found if shape is not None]
        rows = [(name, max(0.0, cosine)) for name, cosine, shape in found if shape is None]
        cards = packed([shape for shape, _ in drawn], [cosine for _, cosine in drawn]) if drawn else None
        return cards, gr.update(value=bars(rows, "{:.3f}"), visible=bool(rows))

    def rebuild(self, session):
        if session is None:
            return gr.skip()
        return packed(rebuild(self.models, session.cloud, session.seed), same_frame=True)

    def hide_others(self, session):
        if session is not None:
            session.seed += 1
        return self.rebuild(session)


def number_of(event: gr.EventData, count: int) -> int | None:
    """The place that an event names, if there is one; anybody can send any event."""
    index = (event._data or {}).get("index") if isinstance(event._data, dict) else None
    return index if type(index) is int and 0 <= index < count else None


def sample_cards() -> tuple[list[ViewerCloud], list[str]]:
    clouds = [open_cloud(path).points for path in SAMPLES]
    kept = np.random.default_rng(0).permutation(len(clouds[0]))[:1500]
    return [ViewerCloud(points[kept], path.stem) for path, points in zip(SAMPLES, clouds, strict=True)], [""] * len(
        clouds
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag, what in FLAGS.items():
        parser.add_argument(f"--{flag}", default=os.environ.get(f"ACT_{flag.upper()}"), help=what)
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT", 7860)))
    options = parser.parse_args()
    names = {flag: getattr(options, flag) for flag in FLAGS}
    if HAS_SERVER:
        forkserver.ensure_running()  # while models load
    try:
        page = Page(load_models(names), names).build()
    except InputError as error:
        sys.exit(f"app.py: error: {error}")
    page.queue(max_size=64, api_open=False).launch(
        server_name=options.host, server_port=options.port, theme=THEME, css=PAGE_STYLE, footer_links=[],
        share=False, enable_monitoring=False, ssr_mode=False, max_file_size=MOST_BYTES, state_session_capacity=200,
        allowed_paths=[], app_kwargs={"middleware": [Middleware(NoProxy)]},
    )  # fmt: skip
