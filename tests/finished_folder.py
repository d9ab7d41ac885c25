"""An output folder of a training script, for the tests of publishing."""

import json

import torch
import yaml

from modeling_act import ACTPointCloudProcessor
from small_models import small_models

CARD = """---
library_name: transformers
license: apache-2.0
---

# A classifier

See https://example.org/home/page and <a/tmp/b>, 3/4 or and/or.

```python
model = ACTStudentForPointCloudClassification.from_pretrained("classifier").eval()
other = ACTStudent.from_pretrained("other/student")
```
"""
LOOKS_LIKE_A_TOKEN = "hf_" + "aB3" * 11
HOME = "/" + "home/someone"


def make_folder(path, dataset="org/set"):
    """Write the files of a finished run, and others that must not be published."""
    torch.manual_seed(0)
    model_class, config, _ = small_models()["classification"]
    model_class(config).save_pretrained(path)
    ACTPointCloudProcessor(num_points=64).save_pretrained(path)
    recipe = {
        "dataset_name": dataset, "dataset_config_name": None, "test_split": "test", "output_dir": str(path),
        "learning_rate": 1e-07, "student": f"{HOME}/students/small", "model": {"num_groups": 16},
    }  # fmt: skip
    metrics = {"metrics": {"accuracy": 0.5}, "test": {"loss": 0.875, "accuracy": 0.75, "other": 0.625}, "steps": 3}
    files = {
        "README.md": CARD, "recipe.yaml": yaml.safe_dump(recipe, sort_keys=False), "metrics.json": json.dumps(metrics),
        "report.html": "<html></html>", "pictures/confusion.png": "png", "log.jsonl": "{}", "notes.txt": "mine",
        "stray.py": "x = 1", "pytorch_model.bin": "pickle", "optimizer.pt": "pickle", "token": LOOKS_LIKE_A_TOKEN,
        "checkpoints/step-3/model.safetensors": "x", "best/model.safetensors": "x", "ema/config.json": "{}",
        "pictures/raw.npz": "x", ".env": LOOKS_LIKE_A_TOKEN, "act/events.out": "x",
    }  # fmt: skip
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def published_of(folder) -> set[str]:
    """Names of the files to publish: all modules but the stray one, and the files of every run."""
    code = {path.name for path in folder.glob("*.py")} - {"stray.py"}
    assert {"modeling_act_student.py", "point_ops.py", "processing_act.py"} <= code
    texts = {"README.md", "config.json", "preprocessor_config.json", "recipe.yaml", "metrics.json", "report.html"}
    return code | texts | {"model.safetensors", "pictures/confusion.png"}
