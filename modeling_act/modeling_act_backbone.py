"""Transformer inside the teacher: one canonical block that holds any pretrained family.

`backbone_families.py` reads a pretrained model into it. Tokens are groups, so the original's patch embeddings, class
tokens and image positions are left out; every block adds the groups' own positions instead.
"""

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .act_layers import ACTMLP, attend, eager_attention_forward
from .configuration_act_teacher import ACTTeacherConfig


class ACTAffine(nn.Module):
    """Scale and shift of each channel, which ResMLP has in place of a norm."""

    def __init__(self, hidden_size: int, eps: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.addcmul(self.bias, hidden_states, self.weight)


NORMS = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm, "affine": ACTAffine}


def make_norm(config: ACTTeacherConfig, enabled: bool = True, size: int | None = None) -> nn.Module:
    if not enabled:
        return nn.Identity()
    return NORMS[config.norm_type](size or config.hidden_size, eps=config.layer_norm_eps)


class ACTBackboneAttention(nn.Module):
    """Self-attention of the groups, with prompts as further keys and values."""

    def __init__(self, config: ACTTeacherConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.is_causal = False
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.key_value = nn.Linear(config.hidden_size, 2 * config.hidden_size, bias=config.qkv_bias)
        self.query_norm = make_norm(config, config.qk_norm, self.head_dim)
        self.key_norm = make_norm(config, config.qk_norm, self.head_dim)
        self.norm = make_norm(config, config.attention_norm)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor, prompts: Tensor | None = None, **kwargs) -> tuple[Tensor, Tensor | None]:
        query = self.query_norm(self.query(hidden_states).unflatten(2, (self.num_heads, self.head_dim)))
        keys_values = self.key_value(hidden_states)
        if prompts is not None:
            # The attention output of a prompt is dropped after every block, so a prompt needs no query.
            keys_values = _prepend(self.key_value(prompts), keys_values)
        key, value = keys_values.unflatten(2, (2, self.num_heads, self.head_dim)).unbind(2)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        context, weights = attend(self, attention, query, self.key_norm(key), value, **kwargs)
        return self.proj(self.norm(context)), weights


class ACTTokenMixer(nn.Module):
    """Mixing across a fixed number of tokens, prompts then groups, of MLP-Mixer and ResMLP."""

    def __init__(self, config: ACTTeacherConfig):
        super().__init__()
        num_tokens = config.num_mixer_tokens
        if config.token_mixer == "mlp":
            self.mix = nn.Sequential(
                nn.Linear(num_tokens, config.mixer_dim),
                ACT2FN[config.hidden_act],
                nn.Linear(config.mixer_dim, num_tokens),
            )
        else:
            self.mix = nn.Linear(num_tokens, num_tokens)

    def forward(self, hidden_states: Tensor, prompts: Tensor | None = None, **kwargs) -> tuple[Tensor, None]:
        tokens = hidden_states if prompts is None else _prepend(prompts, hidden_states)
        return self.mix(tokens.transpose(1, 2)).transpose(1, 2)[:, -hidden_states.shape[1] :], None


class ACTBackboneLayer(GradientCheckpointingLayer):
    """Transformer block without dropout: a frozen one is deterministic."""

    def __init__(self, config: ACTTeacherConfig):
        super().__init__()
        self.post_norm = config.norm_position == "post"
        self.norm1 = make_norm(config)
        self.mixer = ACTBackboneAttention(config) if config.token_mixer == "attention" else ACTTokenMixer(config)
        self.norm2 = make_norm(config)
        self.mlp = ACTMLP(config, config.gated_mlp, make_norm(config, config.mlp_norm, config.intermediate_size))
        self.layer_scale1 = nn.Parameter(torch.ones(config.hidden_size)) if config.use_layer_scale else None
        self.layer_scale2 = nn.Parameter(torch.ones(config.hidden_size)) if config.use_layer_scale else None

    def forward(self, hidden_states: Tensor, positions: Tensor, prompts: Tensor | None = None, **kwargs) -> Tensor:
        """(batch, tokens, hidden_size) twice, (batch or 1, prompts, hidden_size) -> (batch, tokens, hidden_size)."""
        hidden_states = hidden_states + positions
        if self.post_norm:
            hidden_states = self.norm1(hidden_states + self.mixer(hidden_states, prompts, **kwargs)[0])
            return self.norm2(hidden_states + self.mlp(hidden_states))
        prompts = None if prompts is None else self.norm1(prompts)
        mixed, _ = self.mixer(self.norm1(hidden_states), prompts, **kwargs)
        hidden_states = hidden_states + _scale(mixed, self.layer_scale1)
        return hidden_states + _scale(self.mlp(self.norm2(hidden_states)), self.layer_scale2)


def _scale(branch: Tensor, scale: Tensor | None) -> Tensor:
    return branch if scale is None else branch * scale


class ACTBackbone(nn.Module):
    """Blocks and norms of a pretrained Transformer, and nothing else of it."""

    def __init__(self, config: ACTTeacherConfig):
        super().__init__()
        self.input_norm = make_norm(config, config.input_norm)
        self.layers = nn.ModuleList([ACTBackboneLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = make_norm(config, config.final_norm)
        self.prompt_type = config.prompt_type

    def forward(
        self, hidden_states: Tensor, positions: Tensor, prompts: tuple[list[Tensor], list[Tensor]], **kwargs
    ) -> Tensor:
        """Pass groups (batch, groups, hidden_size) and their positions through every block, and drop the prompts."""
        num_groups = hidden_states.shape[1]
        layer_prompts = [None] * len(self.layers)
        # Under autocast the residual stream keeps the weights' dtype: groups differ little from each other.
        hidden_states = self.input_norm(hidden_states.to(self.layers[0].mlp.fc1.weight.dtype))
        if self.prompt_type != "none":
            tokens, prompt_positions = prompts
            tokens = [self.input_norm(tokens[0]), *tokens[1:]]
            if self.prompt_type == "deep":
                layer_prompts = [token + position for token, position in zip(tokens, prompt_positions, strict=True)]
            else:  # shallow prompts are ordinary tokens in all blocks
                hidden_states, positions = _prepend(tokens[0], hidden_states), _prepend(prompt_positions[0], positions)
        for layer, layer_prompt in zip(self.layers, layer_prompts, strict=True):
            hidden_states = layer(hidden_states, positions, layer_prompt, **kwargs)
        return self.norm(hidden_states[:, -num_groups:])


def _prepend(prompts: Tensor, tokens: Tensor) -> Tensor:
    """Prepend prompts (batch or 1, prompts, ...) to the tokens (batch, tokens, ...) of every cloud."""
    return torch.cat([prompts.expand(tokens.shape[0], -1, -1), tokens], dim=1)


class ACTPrompts(nn.Module):
    """Learned prompt tokens with positions of their own; "deep" has new ones for every block."""

    def __init__(self, config: ACTTeacherConfig):
        super().__init__()
        self.prompt_type = config.prompt_type
        self.dropout = nn.Dropout(config.prompt_dropout)
        if self.prompt_type != "none":
            self.tokens = nn.Parameter(torch.empty(1, config.num_prompts, config.hidden_size))
            self.positions = nn.Parameter(torch.empty(1, config.num_prompts, config.hidden_size))
        if self.prompt_type == "deep":
            shape = (config.num_hidden_layers - 1, config.num_prompts, config.hidden_size)
            self.deep_tokens = nn.Parameter(torch.empty(shape))
            self.deep_positions = nn.Parameter(torch.empty(shape))

    def forward(self, batch_size: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return tokens and positions for each block with new prompts, each (batch or 1, prompts, hidden_size).

        Dropout is applied to each cloud's tokens separately; without it the whole batch shares one copy.
        """
        if self.prompt_type == "none":
            return [], []
        tokens, positions = self.tokens, self.positions
        if self.prompt_type == "deep":
            tokens, positions = torch.cat([tokens, self.deep_tokens]), torch.cat([positions, self.deep_positions])
        tokens, positions = list(tokens.split(1)), list(positions.split(1))
        if self.training and self.dropout.p > 0:
            tokens = [self.dropout(token.expand(batch_size, -1, -1)) for token in tokens]
        return tokens, positions
