"""The model card of a run: front matter that the Hub reads, and the numbers it is given."""

from huggingface_hub import ModelCard

from modeling_act.hub.publishing import make_card


def render(**options) -> ModelCard:
    metrics = {"loss": 0.123456789, "codebook_collapsed": False}
    usage = 'model = ACTStudent.from_pretrained("org/model")'
    return ModelCard(make_card("A student", "Text.", usage, metrics, "of the weights after the last step", **options))


def test_a_card_without_test_and_license():
    card = render()
    assert card.data.to_dict() == {"library_name": "transformers", "tags": ["point-cloud", "act"]}
    assert '# A student\n\nText.\n\n```python\nmodel = ACTStudent.from_pretrained("org/model")\n```\n' in card.text
    table = "| measure | value |\n|---|---|\n| loss | 0.123457 |\n| codebook_collapsed | 0 |\n\n## License\n"
    assert f"## Validation\n\nMetrics of the weights after the last step.\n\n{table}" in card.text
    assert "No license of the weights was given" in card.text and "## Test" not in card.text


def test_a_card_with_test_and_license():
    card = render(test={"accuracy": 0.75}, license="mit")
    assert card.data.license == "mit" and "## License" not in card.text
    assert "| measure | value |\n|---|---|\n| accuracy | 0.75 |\n\n## Repro" in card.text.split("## Test")[1]
