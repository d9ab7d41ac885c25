"""Direct implementation of the method from the paper, on the weights of our models.

Full prompts through the Transformer, gather then Conv2d, explicit attention, one-hot codes, losses cloud by cloud.
Every function takes `weights`, a dict of tensors by our parameter names, and a prefix into it. It is the oracle of the
tests and the baseline of steps.py.
"""

import torch
from torch.nn.functional import (
    conv1d,
    conv2d,
    cross_entropy,
    dropout,
    gelu,
    group_norm,
    layer_norm,
    leaky_relu,
    linear,
    one_hot,
    relu,
)


def group(config, points):
    """Sample farthest points one by one, and the nearest points of each by a distance matrix."""
    rows = torch.arange(len(points))
    distances = torch.full(points.shape[:2], torch.inf, dtype=points.dtype)
    chosen, current = [], torch.zeros(len(points), dtype=torch.long)
    for _ in range(config.num_groups):
        chosen.append(current)
        difference = points - points[rows, current][:, None]
        distances = torch.minimum(distances, (difference**2).sum(-1))
        current = distances.argmax(1)
    centers = points[rows[:, None], torch.stack(chosen, dim=1)]
    distances = ((centers[:, :, None] - points[:, None]) ** 2).sum(-1)
    nearest = distances.topk(config.group_size, largest=False).indices
    neighborhoods = torch.stack([cloud[index] for cloud, index in zip(points, nearest, strict=True)])
    return centers, neighborhoods - centers.unsqueeze(2)


def batch_norm(weights, name, x, training):
    """Batch norm over all dimensions but 1, the channels; with batch statistics in training."""
    statistics = (weights[f"{name}.running_mean"], weights[f"{name}.running_var"])
    mean, var = (None, None) if training else statistics
    affine = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return torch.nn.functional.batch_norm(x, mean, var, *affine, training=training)


def affine(weights, name, x):
    return linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def convolve(weights, name, x):
    """Convolution of size 1 over (batch, channels, points) or (batch, channels, points, neighbors)."""
    weight = weights[f"{name}.weight"].unsqueeze(-1)
    if x.ndim == 4:
        return conv2d(x, weight.unsqueeze(-1), weights.get(f"{name}.bias"))
    return conv1d(x, weight, weights.get(f"{name}.bias"))


def group_embedding(weights, name, neighborhoods, training):
    batch_size, num_groups, group_size, _ = neighborhoods.shape
    x = neighborhoods.flatten(0, 1).transpose(1, 2)  # (batch * groups, 3, group_size)
    x = relu(batch_norm(weights, f"{name}.norm1", convolve(weights, f"{name}.linear1", x), training))
    x = convolve(weights, f"{name}.linear2", x)
    whole = x.max(2, keepdim=True).values.expand(-1, -1, group_size)
    x = convolve(weights, f"{name}.linear3", torch.cat([whole, x], dim=1))
    x = relu(batch_norm(weights, f"{name}.norm2", x, training))
    return convolve(weights, f"{name}.linear4", x).max(2).values.view(batch_size, num_groups, -1)


def position(weights, name, centers):
    return affine(weights, f"{name}.linear2", gelu(affine(weights, f"{name}.linear1", centers)))


def graph_network(weights, name, x, centers, num_neighbors=4):
    distances = ((centers[:, :, None] - centers[:, None]) ** 2).sum(-1)
    neighbors = distances.argsort(dim=-1, stable=True)[..., :num_neighbors]
    x, collected = affine(weights, f"{name}.input", x), []
    for layer in range(4):
        gathered = torch.stack([cloud[index] for cloud, index in zip(x, neighbors, strict=True)])
        own = x.unsqueeze(2).expand_as(gathered)
        edges = torch.cat([gathered - own, own], dim=-1).permute(0, 3, 1, 2)  # (batch, channels, groups, neighbors)
        edges = convolve(weights, f"{name}.layers.{layer}.linear", edges)
        norm = f"{name}.layers.{layer}.norm"
        edges = group_norm(edges, 4, weights[f"{norm}.weight"], weights[f"{norm}.bias"])
        x = leaky_relu(edges, 0.2).max(-1).values.transpose(1, 2)
        collected.append(x)
    x = convolve(weights, f"{name}.output", torch.cat(collected, -1).transpose(1, 2))
    x = group_norm(x, 4, weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"])
    return leaky_relu(x, 0.2).transpose(1, 2)


def norm(weights, name, x, eps):
    return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def drop_path(branch, rate, training):
    """Drop the branch for whole clouds."""
    if rate == 0 or not training:
        return branch
    kept = torch.rand(len(branch), 1, 1) >= rate
    return branch * kept / (1 - rate)


def block(weights, name, x, num_heads, eps, attention="attention", rate=0.0, training=False):
    batch_size, num_tokens, width = x.shape
    normed = norm(weights, f"{name}.norm1", x, eps)
    parts = ("query", "key_value") if attention == "mixer" else ("qkv",)
    qkv = torch.cat([affine(weights, f"{name}.{attention}.{part}", normed) for part in parts], dim=-1)
    q, k, v = qkv.reshape(batch_size, num_tokens, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-2, -1)) * (width // num_heads) ** -0.5
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch_size, num_tokens, width)
    x = x + drop_path(affine(weights, f"{name}.{attention}.proj", mixed), rate, training)
    hidden = gelu(affine(weights, f"{name}.mlp.fc1", norm(weights, f"{name}.norm2", x, eps)))
    return x + drop_path(affine(weights, f"{name}.mlp.fc2", hidden), rate, training)


def blocks(weights, prefix, config, depth, heads, x, positions, training):
    """Run the student's blocks; return the outputs of all."""
    outputs = []
    for index in range(depth):
        rate = config.drop_path_rate * index / max(1, depth - 1)
        x = block(
            weights, f"{prefix}.{index}", x + positions, heads, config.layer_norm_eps, "attention", rate, training
        )
        outputs.append(x)
    return outputs


def backbone(weights, config, x, positions, training):
    """Visual prompt tuning in its usual form: prompts are tokens, replaced before every layer if deep."""
    batch_size, num_prompts = x.shape[0], config.num_prompts
    kinds = ("tokens", "positions")
    if config.prompt_type != "none":
        first, first_positions = (weights[f"prompts.{kind}"].expand(batch_size, -1, -1) for kind in kinds)
        first = dropout(first, config.prompt_dropout, training)
        x, positions = torch.cat([first, x], dim=1), torch.cat([first_positions, positions], dim=1)
    for index in range(config.num_hidden_layers):
        if config.prompt_type == "deep" and index > 0:
            new, new_positions = (
                weights[f"prompts.deep_{kind}"][index - 1].expand(batch_size, -1, -1) for kind in kinds
            )
            new = dropout(new, config.prompt_dropout, training)
            x = torch.cat([new, x[:, num_prompts:]], dim=1)
            positions = torch.cat([new_positions, positions[:, num_prompts:]], dim=1)
        layer = f"backbone.layers.{index}"
        x = block(weights, layer, x + positions, config.num_attention_heads, config.layer_norm_eps, "mixer")
    return norm(weights, "backbone.norm", x, config.layer_norm_eps)[:, num_prompts:]


def fold(weights, features, training):
    batch_size, num_groups, width = features.shape
    hidden = relu(affine(weights, "decoder.linear2", relu(affine(weights, "decoder.linear1", features))))
    coarse = affine(weights, "decoder.linear3", hidden).reshape(batch_size, num_groups, -1, 3)
    grid = torch.tensor([[-0.05, -0.05], [0.05, -0.05], [-0.05, 0.05], [0.05, 0.05]], dtype=features.dtype)
    shape = (batch_size, num_groups, coarse.shape[2], 4)
    centers = coarse.unsqueeze(3).expand(*shape, 3)
    x = torch.cat([features[:, :, None, None].expand(*shape, width), grid.expand(*shape, 2), centers], dim=-1)
    x = x.flatten(2, 3).flatten(0, 1).transpose(1, 2)  # (batch * groups, channels, points)
    x = relu(batch_norm(weights, "decoder.norm1", convolve(weights, "decoder.fold1", x), training))
    x = relu(batch_norm(weights, "decoder.norm2", convolve(weights, "decoder.fold2", x), training))
    x = convolve(weights, "decoder.fold3", x).transpose(1, 2).view(*shape, 3)
    return coarse, (x + centers).flatten(2, 3)


def chamfer_l1(points, target):
    """Average the Chamfer-L1 loss over clouds, one at a time."""
    losses = []
    for one, other in zip(points, target, strict=True):
        distances = ((one[:, None] - other[None]) ** 2).sum(-1)
        losses.append((distances.min(1).values.sqrt().mean() + distances.min(0).values.sqrt().mean()) / 2)
    return torch.stack(losses).mean()


def teacher_features(weights, config, centers, logits, temperature, training, hard, noisy):
    if noisy:
        logits = logits - torch.empty_like(logits).exponential_().log()
    codes = (logits / temperature).softmax(-1)
    if hard:
        codes = one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    codes = torch.einsum("bgn,nc->bgc", codes, weights["codebook"])
    x, positions = affine(weights, "code_projection", codes), position(weights, "position_embedding", centers)
    x = affine(weights, "feature_projection", backbone(weights, config, x, positions, training))
    return graph_network(weights, "feature_network", x, centers)


def targets(weights, config, groups):
    """Compute the student's targets: features of the arg-max codes, from a teacher in eval mode."""
    centers, neighborhoods = groups
    embedded = group_embedding(weights, "group_embedding", neighborhoods, False)
    logits = graph_network(weights, "code_network", embedded, centers)
    return teacher_features(weights, config, centers, logits, 1.0, False, hard=True, noisy=False)


def teacher(weights, config, groups, temperature, training, hard=False, noisy=False):
    """Compute losses and features of soft (or arg-max) codes; `noisy` adds Gumbel noise."""
    centers, neighborhoods = groups
    logits = graph_network(
        weights, "code_network", group_embedding(weights, "group_embedding", neighborhoods, training), centers
    )
    features = teacher_features(weights, config, centers, logits, temperature, training, hard, noisy)
    coarse, fine = fold(weights, features, training)
    target = neighborhoods.flatten(0, 1)
    reconstruction = chamfer_l1(coarse.flatten(0, 1), target) + chamfer_l1(fine.flatten(0, 1), target)
    usage = logits.softmax(-1).mean(1)
    uniform = torch.full_like(usage, 1 / usage.shape[-1])
    kl = (uniform * (uniform.log() - usage.log())).sum(-1).mean()
    return reconstruction, kl, features


def encoder(weights, config, groups, training, mask=None, prefix="student.", cls=True):
    """Return the outputs of all layers, before the final norm."""
    centers, neighborhoods = groups
    x = group_embedding(weights, f"{prefix}group_embedding", neighborhoods, training)
    if mask is not None:
        x = torch.stack([cloud[~hidden] for cloud, hidden in zip(x, mask, strict=True)])
        centers = torch.stack([cloud[~hidden] for cloud, hidden in zip(centers, mask, strict=True)])
    positions = position(weights, f"{prefix}position_embedding", centers)
    if cls:
        x = torch.cat([weights[f"{prefix}cls_token"].expand(len(x), -1, -1), x], dim=1)
        positions = torch.cat([weights[f"{prefix}cls_position"].expand(len(x), -1, -1), positions], dim=1)
    depth, heads = config.num_hidden_layers, config.num_attention_heads
    return blocks(weights, f"{prefix}layers", config, depth, heads, x, positions, training)


def pool(weights, config, outputs, prefix="student."):
    x = norm(weights, f"{prefix}norm", outputs[-1], config.layer_norm_eps)
    return torch.cat([x[:, 0], x[:, 1:].max(1).values], dim=-1)


def classification(weights, config, groups, labels, training):
    x = pool(weights, config, encoder(weights, config, groups, training))
    for layer in (0, 4):
        x = relu(
            batch_norm(
                weights, f"classifier.layers.{layer + 1}", affine(weights, f"classifier.layers.{layer}", x), training
            )
        )
        x = dropout(x, config.classifier_dropout, training)
    return cross_entropy(affine(weights, "classifier.layers.8", x), labels)


def pretraining(weights, config, groups, mask, teacher_features, training):
    centers = groups[0]
    visible = norm(
        weights, "student.norm", encoder(weights, config, groups, training, mask)[-1], config.layer_norm_eps
    )[:, 1:]
    shown = torch.stack([cloud[~hidden] for cloud, hidden in zip(centers, mask, strict=True)])
    hidden_centers = torch.stack([cloud[hidden] for cloud, hidden in zip(centers, mask, strict=True)])
    x = torch.cat([visible, weights["decoder.mask_token"].expand(*hidden_centers.shape[:2], -1)], dim=1)
    positions = position(weights, "decoder.position_embedding", torch.cat([shown, hidden_centers], dim=1))
    heads = config.decoder_num_attention_heads or config.num_attention_heads
    depth = config.decoder_num_hidden_layers
    x = blocks(weights, "decoder.layers", config, depth, heads, x, positions, training)[-1]
    x = norm(weights, "decoder.norm", x, config.layer_norm_eps)[:, -hidden_centers.shape[1] :]
    predicted = affine(weights, "decoder.projection", x)
    losses = []
    for prediction, target, hidden in zip(predicted, teacher_features, mask, strict=True):
        target = target[hidden]
        cosine = (prediction * target).sum(-1) / (prediction.norm(dim=-1) * target.norm(dim=-1))
        losses.append((1 - cosine).mean())
    return torch.stack(losses).mean()


def segmentation(weights, config, points, groups, training, category=None):
    centers = groups[0]
    outputs = encoder(weights, config, groups, training, cls=False)
    depth = config.num_hidden_layers
    layers = config.segmentation_layers or [-(-depth * third // 3) for third in (1, 2, 3)]
    tokens = torch.cat([norm(weights, "student.norm", outputs[n - 1], config.layer_norm_eps) for n in layers], dim=-1)
    distances = ((points[:, :, None] - centers[:, None]) ** 2).sum(-1)
    nearest, index = (part[..., :3] for part in distances.sort(dim=-1, stable=True))
    share = 1 / (nearest + 1e-8)
    share = share / share.sum(-1, keepdim=True)
    interpolated = torch.stack([cloud[i] for cloud, i in zip(tokens, index, strict=True)]) * share.unsqueeze(-1)
    x = torch.cat([points, interpolated.sum(2)], dim=-1).transpose(1, 2)
    x = relu(batch_norm(weights, "head.norm1", convolve(weights, "head.propagate1", x), training))
    x = relu(batch_norm(weights, "head.norm2", convolve(weights, "head.propagate2", x), training))
    whole = [tokens.max(1).values, tokens.mean(1)]
    if category is not None:
        embedded = affine(weights, "category_embedding", one_hot(category, config.num_categories).to(points.dtype))
        whole.append(leaky_relu(batch_norm(weights, "category_norm", embedded, training), 0.2))
    whole = torch.cat(whole, dim=-1).unsqueeze(2).expand(-1, -1, points.shape[1])
    x = convolve(weights, "head.linear1", torch.cat([x, whole], dim=1))
    x = dropout(relu(batch_norm(weights, "head.norm3", x, training)), config.segmentation_dropout, training)
    x = relu(batch_norm(weights, "head.norm4", convolve(weights, "head.linear2", x), training))
    return convolve(weights, "head.linear3", x).transpose(1, 2)
