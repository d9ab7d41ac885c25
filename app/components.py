"""The pieces of HTML that Gradio does not have: viewers of clouds, bars of probabilities, lines of text. Whatever
comes from outside goes through `html.escape` here, or through text nodes in the viewer."""

from html import escape

import gradio as gr

from modeling_act.viewer.page import VIEWER_SCRIPT, VIEWER_STYLE, ViewerCloud, pack_clouds

SHOW = """
const root = element.querySelector(".act-root");
function show() {
  if (props.value?.clouds) actViewer(root, props.value.clouds, %s);
  root.hidden = !props.value?.clouds;
}
watch("value", show);
show();
"""
VIEWER = "{ one: true, turned: true, onPick: (index) => trigger('select', { index }) }"
CARDS = "{ onOpen: (index) => trigger('select', { index }) }"
PICTURES = "{}"

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # of the visitor, fetched from nowhere
THEME = gr.themes.Soft(
    primary_hue="indigo", neutral_hue="slate", radius_size="lg", font=FONTS, font_mono=["ui-monospace", "monospace"]
)

PAGE_STYLE = """
.gradio-container .main.fillable { padding: 0 !important; }
.gradio-container main { width: 100%; max-width: 1640px !important; margin: 0 auto;
  padding: 18px clamp(10px, 2vw, 28px) 32px !important; }
.gradio-container .html-container { padding: 0; }
.gradio-container :is(main, .column, .row, .block, .html-container) { min-width: 0; max-width: 100%; }
.gradio-container footer { display: none !important; }
#head h1 { font-size: clamp(1.35rem, 2.4vw, 1.9rem); line-height: 1.15; margin: 0 0 4px; font-weight: 700;
  letter-spacing: -.02em; }
#head p { margin: 0; opacity: .75; font-size: .95rem; }
#head .models { display: flex; flex-wrap: wrap; gap: 6px; margin-top: 10px; font-size: .8rem; }
#head .models span { border: 1px solid var(--border-color-primary); border-radius: 99px; padding: 2px 10px; }
#head .models .none { border-style: dashed; opacity: .85; }
#head .models b { font-weight: 600; }
#head code { font-size: .92em; background: var(--background-fill-secondary); padding: 1px 5px; border-radius: 5px; }
.card { background: var(--block-background-fill); border: 1px solid var(--border-color-primary);
  border-radius: var(--radius-xl); padding: 14px !important; gap: 10px !important; }
.card h2 { font-size: .95rem; font-weight: 650; margin: 0; }
.card .hint, #hint { opacity: .72; font-size: .84rem; line-height: 1.45; margin: 0; }
#viewer .html-container { transition: opacity .1s; }
#viewer .html-container.pending { transition: opacity .3s .3s; } /* nothing flickers for what is there at once */
#viewer canvas { background: var(--background-fill-secondary); }
#viewer .act-clouds { --act-height: max(340px, calc(100dvh - 330px)); }
#samples .act-clouds { grid-template-columns: repeat(2, 1fr); gap: 8px; }
#samples figure, #hits figure { border: 1px solid transparent; border-radius: 12px; padding: 4px; }
#samples figure:hover, #hits figure:hover { border-color: var(--color-accent); }
#samples figcaption, #hits figcaption { padding: 2px; text-align: center; font-size: .78rem; line-height: 1.3; }
#samples figcaption b, #hits figcaption b { font-weight: 550; }
#samples canvas, #hits canvas { aspect-ratio: 4 / 3; }
#coloring .wrap { gap: 6px; }
#coloring label { border-radius: 99px; padding: 6px 14px; box-shadow: none;
  border: 1px solid var(--border-color-primary); }
#coloring input { display: none; }
#coloring label span { margin: 0; }
#category .wrap { border: 1px solid var(--border-color-primary); border-radius: 99px; }
#z-up input { border: 1px solid var(--body-text-color-subdued); }
#hits .act-clouds { grid-template-columns: repeat(3, 1fr); gap: 4px; }
#rebuilt .act-clouds { grid-template-columns: repeat(auto-fit, minmax(min(200px, 46%), 1fr)); }
#rebuilt canvas { background: var(--background-fill-secondary); aspect-ratio: 4 / 3; }
.message { border-radius: 10px; padding: 8px 12px; font-size: .9rem; overflow-wrap: anywhere; }
.message.bad { background: #d6336c1f; border: 1px solid #d6336c88; }
.message.note { background: var(--background-fill-secondary); }
.bars { display: grid; gap: 7px; font-size: .88rem; }
.bars .row { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 1px 8px; }
.bars .row span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bars .row em { font-style: normal; font-variant-numeric: tabular-nums; opacity: .75; }
.bars .row:first-child span, .bars .row:first-child em { font-weight: 650; opacity: 1; }
.bars .track { grid-column: 1 / 3; height: 7px; border-radius: 4px; background: var(--background-fill-secondary); }
.bars .track i { display: block; height: 100%; border-radius: 4px; background: var(--color-accent); min-width: 2px; }
@media (max-width: 760px) {
  .gradio-container main { padding: 12px 10px 24px !important; gap: 10px; }
  .card { padding: 10px !important; }
  #work, #inputs { gap: 10px; }
  #samples .act-clouds { display: flex; overflow-x: auto; }
  #samples figure { flex: 0 0 72px; }
  #head .models { flex-wrap: nowrap; overflow-x: auto; white-space: nowrap; }
  #head .models .none { white-space: normal; border-radius: 12px; }
  #upload .icon-wrap { display: none; }
  #upload button:has(.wrap) { height: 84px !important; min-height: 0 !important; }
  #rebuilt .act-clouds { grid-template-columns: repeat(3, 1fr); gap: 6px; }
  #inputs .hint, #inputs h2 { display: none; }
  #viewer .act-clouds { --act-height: 56dvh; }
  #work { flex-direction: column; }
  #work > * { width: 100%; min-width: 0 !important; }
}
"""


def cloud_view(kind: str, **options) -> gr.HTML:
    """A component whose value is what `packed` gives; the place that was clicked comes with its `select` event."""
    return gr.HTML(
        value=None,
        html_template='<div class="act-root" hidden></div>',  # nothing of the value: the script alone reads it
        css_template=VIEWER_STYLE,
        js_on_load=VIEWER_SCRIPT + SHOW % kind,
        apply_default_css=False,
        **options,
    )


def packed(clouds: list[ViewerCloud], captions: list[str] | None = None, picked: int | None = None, **options) -> dict:
    """`captions` stand where a viewer says how many points it shows; `picked` is marked in the first cloud."""
    values = pack_clouds(clouds, **options)
    for value, caption in zip(values, captions or [], strict=False):
        value["caption"] = caption
    if picked is not None:
        values[0]["picked"] = picked
    return {"clouds": values}


def bars(classes: list[tuple[str, float]], form: str = "{:.1%}") -> str:
    rows = [
        f'<div class="row"><span title="{escape(name)}">{escape(name)}</span><em>{form.format(share)}</em>'
        f'<div class="track"><i style="width: {100 * share:.2f}%"></i></div></div>'
        for name, share in classes
    ]
    return f'<div class="bars">{"".join(rows)}</div>'


def message(text: str, kind: str = "bad") -> dict:
    """One line above the viewer; none if there is nothing to say."""
    return gr.update(value=f'<div class="message {kind}" role="status">{escape(text)}</div>', visible=bool(text))
