"""Rules that both configurations check, each with one clear error."""

from transformers import PreTrainedConfig


def check_positive(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}")


def check_widths(config: PreTrainedConfig, **lengths: int) -> None:
    for name, length in lengths.items():
        widths = getattr(config, name)
        if len(widths) != length or min(widths) < 1:
            raise ValueError(f"`{name}` must hold {length} positive widths, got {widths}")


def check_choice(config: PreTrainedConfig, **choices: tuple[str, ...]) -> None:
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(config, name)!r}")


def check_share(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be at least 0 and below 1, got {getattr(config, name)}")
