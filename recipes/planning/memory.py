"""What each device holds, by cause, at the moment of a step when it is most.

A step has four moments that can be the fullest: the loss, when all that is held stands beside a chunk of logits; the
backward of the last layer, when little has been freed; that of the first, when every gradient is there; and the
optimizer. Each is a sum of causes in closed form (activations.py); the plan shows the largest.

    weights       fp32, of which autocast keeps 16-bit copies of the layers' matrices through the step; with fsdp a
                  shard, and besides, in 16 bits, embedding and head and two layers, gathered
    gradients     fp32. With fsdp a shard, or where they are reduced once a step, all of them on every rank until its
                  last micro-batch; ddp has its buckets besides
    activations   what is held of every layer, or of a recomputed one its input, and all of the one in backward

Basis: counted from this repository's code, and compared with live tensors on a CPU (tests/recipes/planning). What only
a GPU has is taken from its documentation and was not measured: the context, cuBLAS' and attention's work space, the
optimizer's fused temporaries, what the allocator cannot use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from recipes.planning.activations import LOSS_BYTES
from recipes.planning.job import Job

GIB = 2**30
HEAD_ROWS = 128
"""Chunks of the loss are filled up to a multiple of this (losses/chunked_cross_entropy.py)."""
COPIES_AT_ONCE = 2
"""Layers' inputs that are still on their way to the host when a forward pass ends (memory/host_offload.py)."""

WEIGHTS = "weights"
COPIES = "16-bit copies, gathered layers"
GRADIENTS = "gradients"
OPTIMIZER = "optimizer state"
BUCKETS = "gradient buckets"
LORA = "LoRA with its states"
HELD = "activations held"
WORKING = "working set of a layer"
LOSS = "logits chunk and head"
STEP = "optimizer's work space"
CAUSES = (WEIGHTS, COPIES, GRADIENTS, OPTIMIZER, BUCKETS, LORA, HELD, WORKING, LOSS, STEP)


class Moment(NamedTuple):
    """One moment of a step, and what a device then holds of tensors."""

    name: str
    bytes_by_cause: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.bytes_by_cause.values())


def fullest(job: Job) -> Moment:
    """The moment of a step, not the first of a run, at which a device holds most."""
    return max(moments(job), key=lambda moment: moment.total)


def moments(job: Job) -> list[Moment]:
    """All that can be the fullest."""
    always, held = _always(job), held_bytes(job)
    before, head = _gradients_before(job), _head_gradient(job)
    own = _working(job)
    layers = {
        "loss": {GRADIENTS: before, HELD: held, LOSS: _loss(job), WORKING: 0.0},
        "backward of the last layer": {GRADIENTS: max(before, head), HELD: held, WORKING: own},
        "backward of the first layer": {GRADIENTS: _gradients_all(job), HELD: _held_at_first(job), WORKING: own},
    }
    copies = copies_bytes(job)
    found = [Moment(name, {**always, COPIES: copies, **causes}) for name, causes in layers.items()]
    at_step = {GRADIENTS: 4.0 * job.trained_base / job.shards, STEP: _optimizer_work(job)}
    return [*found, Moment("optimizer step", {**always, COPIES: 0.0 if job.sharded else copies, **at_step})]


def _always(job: Job) -> dict[str, float]:
    """What stands at every moment."""
    adapter = 8.0 * job.adapter_weights + job.moments(adapter=True)  # weights and gradients in fp32
    return {
        WEIGHTS: job.base_bytes / job.shards,
        OPTIMIZER: job.moments(adapter=False) / job.shards,
        LORA: adapter / job.shards,
        BUCKETS: 4.0 * job.trained if job.strategy == "ddp" else 0.0,
    }


def copies_bytes(job: Job) -> float:
    """Weights in the width of the computing, beside those that are held."""
    model, width = job.model, job.compute_bytes
    if job.sharded:
        outside = model.embedding * (1 if model.tied_embeddings else 2)
        return float(width * (outside + 2 * model.layer_parameters))
    if not job.widths.casts:
        return 0.0
    linears = model.linears
    adapted = set(job.adapter.targets) if job.adapter else set()  # which cast for the moment, and keep nothing
    # A tiled MLP casts for the moment, too; a recomputed layer keeps its casts, as autocast remembers them.
    tiled = {"gate_proj", "up_proj", "down_proj"} if job.memory.mlp_tile_size else set()
    if job.adapter is not None and job.memory.recompute != "none":
        tiled = set(linears)  # frozen, it is not remembered, and a recomputed layer holds nothing
    weights = sum(math.prod(shape) for name, shape in linears.items() if name not in adapted | tiled)
    return float(width * model.num_layers * weights)


def held_bytes(job: Job) -> float:
    """Activations that stand on a device when the forward pass is over."""
    widths, option, layers = job.widths, job.memory, job.model.num_layers
    first = widths.norm if job.adapter is not None and not job.adapter.trains_embeddings else 0
    if option.recompute == "none":
        each = widths.tiled_layer if option.mlp_tile_size else widths.layer
        return float(job.tokens * (layers * each - first + widths.last))
    return float(job.tokens * (_held_inputs(job) + _kept(job) + widths.last))


def _held_inputs(job: Job) -> float:
    """Bytes a token of recomputed layers' inputs on the device."""
    option, layers = job.memory, job.model.num_layers
    segment = option.layers_per_checkpoint or 1
    inputs = math.ceil(layers / segment)
    if option.offload_to_host:
        inputs = min(inputs, option.keep_on_device or COPIES_AT_ONCE)
    return job.widths.layer_input * inputs


def _kept(job: Job) -> float:
    """Bytes a token of attention's outputs that `keep_attention` holds, of all layers."""
    return job.widths.kept_attention * job.model.num_layers if job.memory.recompute == "keep_attention" else 0.0


def _working(job: Job) -> float:
    """What the backward of a layer needs beyond what is held: most of it in its MLP, its norms or its attention."""
    widths, option = job.widths, job.memory
    in_attention = widths.attention_backward(on_gpu=job.on_gpu)
    if option.recompute == "none":
        in_mlp = _tile(job) if option.mlp_tile_size else job.tokens * (widths.mlp_backward - widths.norm)
        return max(in_mlp, float(job.tokens * max(widths.norm_backward, in_attention - widths.mlp)))
    each = widths.tiled_layer if option.mlp_tile_size else widths.layer
    kept = widths.kept_attention if option.recompute == "keep_attention" else 0
    recomputed = each - widths.own_input - kept - widths.norm  # the last norm, which is counted as held, is done with
    recomputed += widths.layer_input * ((option.layers_per_checkpoint or 1) - 1)
    recomputed += widths.layer_input if option.offload_to_host else 0  # that of the layer below is fetched beside
    if option.mlp_tile_size:
        in_mlp = _tile(job) + job.tokens * (widths.layer_input + widths.compute * job.model.hidden_size)
        in_norm = widths.norm_backward - widths.own_input  # what the MLP read is gone by then
    else:
        in_mlp = float(job.tokens * widths.mlp_backward)
        in_norm = widths.norm_backward - widths.own_input - widths.mlp
    in_attention += widths.first_half + widths.layer_input - each
    return max(in_mlp, float(job.tokens * max(in_norm, in_attention))) + job.tokens * recomputed + _layer_gradients(job)


def _tile(job: Job) -> float:
    """A tile of an MLP in its forward and backward, with the working copies and the sums of its weights' gradients."""
    model, width = job.model, job.compute_bytes
    assert job.memory.mlp_tile_size is not None
    tokens = min(job.memory.mlp_tile_size, job.tokens)
    numbers = 6 * width * model.intermediate_size + 4 * 4 * model.hidden_size
    weights = 3 * model.hidden_size * model.intermediate_size
    copies = width * weights if job.widths.casts else 0
    sums = 4 * weights if job.adapter is None else 0
    return float(tokens * numbers + copies + sums)


def _layer_gradients(job: Job) -> float:
    """Gradients of a layer on their way: of its largest matrix, or with fsdp of all of it, to be reduced in fp32."""
    if job.adapter is not None:
        return 0.0
    if job.sharded:
        return float((4 + job.compute_bytes) * job.model.layer_parameters)
    return 4.0 * job.model.hidden_size * job.model.intermediate_size


def _held_at_first(job: Job) -> float:
    """Activations that stand when the backward has reached the first layer, besides its own working set."""
    widths = job.widths
    if job.memory.recompute == "none":
        each = widths.tiled_layer if job.memory.mlp_tile_size else widths.layer
        return float(job.tokens * (each + widths.last - widths.norm))
    kept = widths.kept_attention if job.memory.recompute == "keep_attention" else 0
    return float(job.tokens * (widths.layer_input + kept + widths.last))


def _gradients_before(job: Job) -> float:
    """Gradients of the model's own weights at the beginning of the fullest micro-batch, of earlier ones."""
    return 4.0 * job.trained_base / _parts(job) if job.micro_batches > 1 else 0.0


def _parts(job: Job) -> int:
    """Parts that gradients are cut into between micro-batches."""
    return job.shards if job.reduces_always else 1


def _gradients_all(job: Job) -> float:
    """And when the backward has reached the first layer: whole where they are not reduced yet."""
    if job.micro_batches > 1:
        return 4.0 * job.trained_base / _parts(job)
    model, missing = job.model, 0  # its own, and the embedding's behind it
    if job.adapter is None:
        missing = model.layer_matmul + (0 if model.tied_embeddings else model.embedding)
    return 4.0 * (job.trained_base - missing) / job.shards


def _trains_head(job: Job) -> bool:
    tied = job.adapter is not None and job.adapter.trains_embeddings and job.model.tied_embeddings
    return job.adapter is None or tied


def _head_gradient(job: Job) -> float:
    return 4.0 * job.model.embedding if _trains_head(job) else 0.0


def _loss(job: Job) -> float:
    """A chunk of logits, the output head in the width of the computing, and its gradient."""
    model, width, widths = job.model, job.compute_bytes, job.widths
    rows = min(job.memory.loss_chunk_size, -(-job.tokens // HEAD_ROWS) * HEAD_ROWS)
    logits = rows * model.vocab_size * (6 if width == 2 else 4)  # in 16 bits and in fp32 at once
    cast = width * model.embedding if width < 4 and not (job.sharded or job.bf16_weights) else 0
    gradient = _head_gradient(job)
    product = width * model.embedding if gradient and width < 4 else 0
    normalised = 8.0 * model.embedding if model.normalised_head else 0.0
    tokens = job.tokens * (widths.layer_input + LOSS_BYTES)
    chunk = max(logits, width * rows * model.vocab_size + product)  # the product needs the 16-bit gradient alone
    return float(chunk + cast + gradient + normalised + tokens)


def _optimizer_work(job: Job) -> float:
    """What an optimizer step needs for the moment."""
    model = job.model
    largest = max(model.embedding, model.hidden_size * model.intermediate_size) if job.trained_base else 0
    if job.optimizer == "adamw":
        # On a GPU, torch's AdamW takes all parameters at once and makes roots of second moments for all of them.
        return 4.0 * job.trained / job.shards if job.on_gpu else 12.0 * largest / job.shards
    return {"adamw_bf16": 16.0, "adamw_8bit": 4.0, "muon": 12.0}[job.optimizer] * largest / job.shards


def host_bytes(job: Job) -> float:
    """Pinned host memory of one rank, for layers' inputs that wait there."""
    option = job.memory
    if not option.offload_to_host:
        return 0.0
    inputs = math.ceil(job.model.num_layers / (option.layers_per_checkpoint or 1))
    return float(job.tokens * job.widths.layer_input * max(0, inputs - option.keep_on_device))


def loading_bytes(job: Job) -> float:
    """Host memory of one rank while it reads the weights: every rank reads all of them."""
    return float(job.model.num_parameters * (2 if job.bf16_weights else 4))
