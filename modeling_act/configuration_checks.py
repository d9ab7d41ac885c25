"""What both configurations share: rules with one clear error each, and what a `config.json` may not say."""

import json
import math
import os

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from .errors import InputError

# No model comes near these: the deepest plain Transformers have some 100 layers, the widest are some 50,000 wide.
# A count beyond them is a mistake, or is meant to exhaust whoever loads it; what the weights hold is checked later.
MOST_LAYERS = 256
LARGEST_COUNT = 2**20
LARGEST_FILE = 2**24  # bytes of a config.json; one of a hundred thousand labels takes less
DTYPES = ("float32", "float16", "bfloat16", "float64")
# What transformers would act upon: fetch kernels or other weights, replace modules, read other files. Who loads a
# model says these things as arguments; a file never does, and `save_pretrained` writes none of them.
NOT_FROM_A_FILE = {
    "attn_implementation",
    "distributed_config",
    "experts_implementation",
    "fusion_config",
    "kernel_config",
    "per_layer_config",
    "quantization_config",
    "sub_configs",
    "transformers_weights",
    "use_kernels",
}


class ACTPreTrainedConfig(PreTrainedConfig):
    """A configuration that does not trust the file it comes from."""

    def __post_init__(self, **kwargs):
        _check_labels(self.id2label, kwargs.get("num_labels"))
        dtype = self.dtype or kwargs.get("torch_dtype")
        if isinstance(dtype, str) and dtype not in DTYPES:
            raise InputError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype[:40]!r}")
        super().__post_init__(**kwargs)
        self.validate_architecture()  # from here it raises a plain ValueError, which @strict would wrap

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As `PreTrainedConfig.from_dict`, of a file's content: what that must not say, and its errors in one line."""
        for key, value in config_dict.items():
            private = key.startswith("_") and key not in ("_name_or_path", "_commit_hash")
            if private or callable(getattr(cls, key, None)) or (key in NOT_FROM_A_FILE and value is not None):
                raise InputError(
                    f"config.json must not set {key[:60]!r}, which changes how models are loaded; remove it, or give "
                    "it as an argument if you trust it"
                )
        try:
            return super().from_dict(config_dict, **kwargs)
        except StrictDataclassError as error:
            raise InputError(f"config.json: {' '.join(str(error).split())[:300]}") from error

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict:
        if (size := os.path.getsize(json_file)) > LARGEST_FILE:
            raise InputError(f"{json_file}: has {size} bytes, more than the {LARGEST_FILE} of any configuration")
        try:
            content = super()._dict_from_json_file(json_file)
        except RecursionError as error:
            raise InputError(f"{json_file}: is nested too deeply for a configuration") from error
        except json.JSONDecodeError:  # transformers says which file
            raise
        except ValueError as error:  # an integer of thousands of digits
            raise InputError(f"{json_file}: is no configuration: {str(error)[:200]}") from error
        if not isinstance(content, dict):
            raise InputError(f"{json_file}: must hold one object, got {type(content).__name__}")
        if "configuration_files" in content:  # transformers would read the one for its version, wherever it is
            raise InputError(f"{json_file}: must not name other files, as its 'configuration_files' does")
        return content


def _check_labels(id2label: object, num_labels: object) -> None:
    """Before transformers writes a name for each of them."""
    if num_labels is not None and not (_is_count(num_labels) and 0 <= num_labels <= LARGEST_COUNT):
        raise InputError(f"`num_labels` must be an integer from 0 to {LARGEST_COUNT}, got {str(num_labels)[:40]}")
    if id2label is None:
        return
    if not isinstance(id2label, dict) or not all(_is_count(key) or str(key).isdecimal() for key in id2label):
        raise InputError(f"`id2label` must give a name to each number of a label, got {str(id2label)[:60]}")
    if len(id2label) > LARGEST_COUNT:
        raise InputError(f"`id2label` must hold at most {LARGEST_COUNT} labels, got {len(id2label)}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_positive(config: PreTrainedConfig, *names: str, most: int = LARGEST_COUNT) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}")
        if value is not None and value > most:
            raise ValueError(f"`{name}` must be at most {most}, got {_short(value)}")


def check_widths(config: PreTrainedConfig, **lengths: int) -> None:
    for name, length in lengths.items():
        widths = getattr(config, name)
        if len(widths) != length or min(widths) < 1:
            raise ValueError(f"`{name}` must hold {length} positive widths, got {_short(widths)}")
        if max(widths) > LARGEST_COUNT:
            raise ValueError(f"`{name}` must hold widths of at most {LARGEST_COUNT}, got {_short(widths)}")


def check_finite(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        if not (math.isfinite(getattr(config, name)) and getattr(config, name) >= 0):
            raise ValueError(f"`{name}` must be finite and not negative, got {getattr(config, name)}")


def check_choice(config: PreTrainedConfig, **choices: tuple[str, ...]) -> None:
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(
                f"`{name}` must be one of {', '.join(allowed)}, got {_short(repr(getattr(config, name)))}"
            )


def check_activation(config: PreTrainedConfig) -> None:
    from transformers.activations import ACT2FN  # takes longer to import than both configurations together

    if config.hidden_act not in ACT2FN:
        raise ValueError(
            f"`hidden_act` must name an activation of transformers, as gelu does, got {config.hidden_act[:60]!r}"
        )


def check_share(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be at least 0 and below 1, got {getattr(config, name)}")


def _short(value: object) -> str:
    """What came, in at most 60 characters."""
    if isinstance(value, int) and value.bit_length() > 200:  # Python refuses to write out the longest
        return f"an integer of {value.bit_length()} bits"
    return str(value)[:60]
