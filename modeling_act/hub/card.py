"""The model card of a finished run, rendered from card_template.md."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

TEMPLATE = Path(__file__).with_name("card_template.md")


def make_card(
    title: str,
    text: str,
    usage: str,
    metrics: dict[str, float],
    measured: str,
    test: dict[str, float] | None = None,
    license: str | None = None,
) -> str:
    """Render a model card with the numbers of metrics.json and the license of the weights.

    `measured` says which weights `metrics` belong to; without a `license` the card says that nobody stated one.
    """
    data = ModelCardData(library_name="transformers", license=license, tags=["point-cloud", "act"])
    card = ModelCard.from_template(
        data, str(TEMPLATE), title=title, text=text, usage=usage, metrics=metrics, measured=measured, test=test
    )
    return str(card)
