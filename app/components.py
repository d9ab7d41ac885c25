"""Components that Gradio does not have. Names from outside are escaped here, or become text nodes in the viewer."""

from html import escape

import gradio as gr

from modeling_act.viewer.page import VIEWER_SCRIPT, VIEWER_STYLE, ViewerCloud, pack_clouds

ON_LOAD = """
const root = element.querySelector(".act-root");
function update() {
  if (props.value?.clouds) actViewer(root, props.value.clouds, %s);
  root.hidden = !props.value?.clouds;
}
watch("value", update);
update();
"""
VIEWER = "{ one: true, turned: true, onPick: (index) => trigger('select', { index }) }"
CARDS = "{ onOpen: (index) => trigger('select', { index }) }"
PANELS = "{}"

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # local ones: nothing is downloaded
THEME = gr.themes.Soft(
    primary_hue="indigo", neutral_hue="slate", radius_size="lg", font=FONTS, font_mono=["ui-monospace", "monospace"]
)


def cloud_view(options: str, elem_id: str) -> gr.HTML:
    """Component whose value comes from `pack`, or is {} to show nothing. Its `select` event carries the index that was
    clicked."""
    return gr.HTML(
        value=None,
        html_template='<div class="act-root" hidden></div>',  # only the script reads the value
        css_template=VIEWER_STYLE,
        js_on_load=VIEWER_SCRIPT + ON_LOAD % options,
        apply_default_css=False,
        elem_id=elem_id,
    )


def pack(clouds: list[ViewerCloud], captions: list[str] | None = None, picked: int | None = None, **options) -> dict:
    """Encode clouds for a `cloud_view`; `captions` replace the numbers of points, `picked` is a point of the first."""
    packed = pack_clouds(clouds, **options)
    for cloud, caption in zip(packed, captions or [], strict=False):
        cloud["caption"] = caption
    packed[0]["picked"] = picked
    return {"clouds": packed}


def long_name(name: str, whole: str | None = None) -> str:
    """Name that is cut where it has no room; under the mouse it is whole."""
    return f'<span class="name" title="{escape(whole or name)}">{escape(name)}</span>'


def message(text: str, kind: str = "bad", name: str | None = None) -> dict:
    """Update of the line above the viewer, which is hidden without text; it may begin with the `name` of a file."""
    shown, colon, problem = text.partition(": ")
    line = f"{long_name(shown + ':', name)} {escape(problem)}" if name and colon else escape(text)
    return gr.update(value=f'<div class="message {kind}" role="status">{line}</div>', visible=bool(text))
