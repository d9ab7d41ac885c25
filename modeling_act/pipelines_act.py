"""`pipeline("point-cloud-classification", model=...)` and its siblings, registered on import of the package.

A saved model names its pipeline in config.json and carries this file, for `trust_remote_code=True` where the package
is not installed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from transformers import Pipeline

from .errors import InputError
from .inference import label_points, number_of_category, processor_of
from .processing_act import ACTPointCloudProcessor, is_one_cloud, naming

PROCESSOR_PARAMETERS = ("seed", "up_axis", "unit")


@dataclass
class _Numbered:
    """Cloud and its place among the inputs, which errors name."""

    place: int
    cloud: Any


class ACTPointCloudPipeline(Pipeline):
    """Base of the pipelines on a cloud, or a list or generator of clouds, as `ACTPointCloudProcessor` takes them."""

    _load_processor = False
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False  # `processor_of` loads the one beside the model
    _own_parameters: tuple[str, ...] = ()  # of `postprocess`

    def __init__(self, model, feature_extractor=None, **kwargs):
        if isinstance(feature_extractor, str):
            feature_extractor = ACTPointCloudProcessor.from_pretrained(feature_extractor)
        super().__init__(model, feature_extractor=feature_extractor or processor_of(model), **kwargs)

    def __call__(self, inputs: Any, **kwargs):
        """Return one result for one cloud, or a list of results for a list of clouds."""
        if isinstance(inputs, (Dataset, IterableDataset)):
            return super().__call__(inputs, **kwargs)
        if is_one_cloud(inputs):  # wrapped, so that transformers does not take a list of numbers for a list of clouds
            return super().__call__(_Numbered(0, inputs), **kwargs)
        numbered = (_Numbered(place, cloud) for place, cloud in enumerate(inputs))
        return super().__call__(numbered if isinstance(inputs, Iterator) else list(numbered), **kwargs)

    def _sanitize_parameters(self, **kwargs) -> tuple[dict, dict, dict]:
        unknown = sorted(set(kwargs) - {*PROCESSOR_PARAMETERS, *self._own_parameters})
        if unknown:
            known = ", ".join((*PROCESSOR_PARAMETERS, *self._own_parameters))
            raise ValueError(f"{type(self).__name__} takes {known}, got {', '.join(unknown)}")
        own = {name: kwargs[name] for name in self._own_parameters if name in kwargs}
        return {name: kwargs[name] for name in PROCESSOR_PARAMETERS if name in kwargs}, {}, own

    def preprocess(self, cloud: Any, **options) -> dict[str, Tensor]:
        place, cloud = (cloud.place, cloud.cloud) if isinstance(cloud, _Numbered) else (0, cloud)
        return {"points": self._read(cloud, name=naming(cloud, place), **options).unsqueeze(0)}

    def _read(self, cloud: Any, **options) -> Tensor:
        return self.feature_extractor.take(cloud, **options).points

    def _forward(self, inputs: dict[str, Tensor]):
        return self.model(**inputs)


class ACTPointCloudFeatureExtractionPipeline(ACTPointCloudPipeline):
    """Pipeline that encodes each cloud into a vector (width,), that of `encode(normalize=False)`, or with `pool=False`
    one selection of its points into tokens (1 + groups, hidden_size); as lists of numbers, or with
    `return_tensors=True` as tensors."""

    _own_parameters = ("pool", "return_tensors")

    def _sanitize_parameters(self, **kwargs) -> tuple[dict, dict, dict]:
        of_preprocess, _, own = super()._sanitize_parameters(**kwargs)
        return of_preprocess, {"pool": own.pop("pool")} if "pool" in own else {}, own

    def _read(self, cloud: Any, **options) -> Tensor:
        return self.feature_extractor.take_samples(cloud, self.feature_extractor.samples, **options)

    def _forward(self, inputs: dict[str, Tensor], pool: bool = True) -> dict[str, Tensor]:
        points = inputs["points"]  # (clouds, samples, num_points, 3)
        if not pool:
            return {"values": self.model(points[:, 0]).last_hidden_state}
        return {"values": self.model.embed(points.flatten(0, 1)).unflatten(0, points.shape[:2]).mean(1)}

    def postprocess(self, output: dict[str, Tensor], return_tensors: bool = False) -> Tensor | list:
        values = output["values"][0].float()
        return values if return_tensors else values.tolist()


class ACTPointCloudClassificationPipeline(ACTPointCloudPipeline):
    """Pipeline that predicts the `top_k` likeliest classes of each cloud, `[{"label": ..., "score": ...}, ...]`."""

    _own_parameters = ("top_k",)

    def postprocess(self, output, top_k: int = 5) -> list[dict[str, str | float]]:
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}")
        scores, labels = output.logits[0].float().softmax(-1).topk(min(top_k, output.logits.shape[-1]))
        names = self.model.config.id2label
        return [
            {"label": names[label], "score": score}
            for label, score in zip(labels.tolist(), scores.tolist(), strict=True)
        ]


class ACTPointCloudSegmentationPipeline(ACTPointCloudPipeline):
    """Pipeline that labels every point of each cloud: `points` (n, 3), `labels` (n,), `scores` (n,), and `segments`,
    the number of points of each class. `category`, a name or number, is the object category for part segmentation;
    `votes` is the number of predictions averaged for each point."""

    _own_parameters = ("category", "votes")

    def _sanitize_parameters(self, **kwargs) -> tuple[dict, dict, dict]:
        of_preprocess, _, own = super()._sanitize_parameters(**kwargs)
        return of_preprocess, own | ({"seed": kwargs["seed"]} if "seed" in kwargs else {}), {}

    def _read(self, cloud: Any, **options) -> Tensor:
        return self.feature_extractor.read(cloud, **options)

    def _forward(
        self, inputs: dict[str, Tensor], category: str | int | None = None, votes: int = 1, seed: int = 0
    ) -> dict:
        points = inputs["points"]
        if len(points) != 1:
            raise InputError("segmentation takes clouds of any sizes one by one: leave `batch_size` out")
        category = number_of_category(self.model, category)
        labels, scores = label_points(self.model, points[0].cpu(), self.feature_extractor, category, votes, seed)
        return {"points": points, "labels": labels.unsqueeze(0), "scores": scores.unsqueeze(0)}

    def postprocess(self, output: dict[str, Tensor]) -> dict:
        names, labels = self.model.config.id2label, output["labels"][0]
        counts = labels.bincount().tolist()
        segments = [{"label": names[label], "points": count} for label, count in enumerate(counts) if count]
        return {name: values[0] for name, values in output.items()} | {"segments": segments}
