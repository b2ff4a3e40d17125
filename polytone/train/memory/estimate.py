"""The memory that training takes: an itemised estimate from a model's shape and a plan, as pure arithmetic.

Every item is what the libraries hold at the peak, where the backward pass begins: weights, optimizer states, everything
that the forward pass saved, and the logits with their gradients. The saved tensors were read from autograd one by one;
docs/memory.md has the formulas and the measurements they were compared with.
"""

from dataclasses import dataclass, replace

from .activations import activation_bytes, evaluation_bytes, logit_bytes, workspace_bytes
from .plan import OPTIMIZERS, Plan
from .shape import Shape

FLOAT = 4
DTYPE_COPY = 2
# bitsandbytes' defaults: a scale of 8 bits for 64 weights, and a float32 scale for 256 of those.
BLOCK, NESTED_BLOCK = 64, 256
TABLES_BYTES = 4 * (16 + 256 + 1)  # every layer has its own tables of codes, and an offset
# Resident size of a training process before the model is loaded, and of what the libraries load during training, both
# measured (bench/memory.py). What a CUDA process holds beside its tensors is a usual figure, not measured on a GPU.
PROCESS_BYTES = 700_000_000
CUDA_CONTEXT_BYTES = 800_000_000
STORED_BYTES = 2  # of a checkpoint's weight, in bfloat16
LARGEST_BATCH = 1 << 20
PROCESS = "process and libraries"
HELD_WHILE_LOADING = ("weights", "quantization constants", PROCESS)


@dataclass(frozen=True)
class Item:
    """A part of the estimate, in bytes, with its assumption."""

    name: str
    bytes: int
    assumption: str


@dataclass(frozen=True)
class Estimate:
    """The items sum to `total_bytes` exactly."""

    shape: Shape
    plan: Plan
    items: tuple[Item, ...]

    @property
    def total_bytes(self) -> int:
        return sum(item.bytes for item in self.items)


def estimate(shape: Shape, plan: Plan) -> Estimate:
    """The peak of memory while `shape` is trained by `plan`, item by item."""
    quantized = plan.method == "qlora"
    full = plan.method == "full"
    logits = logit_bytes(shape, plan)
    items = (
        weights_item(shape, plan),
        Item("quantization constants", constant_bytes(shape) if quantized else 0, constants_words(quantized)),
        gradients_item(shape, plan),
        optimizer_item(shape, plan),
        Item("adapter", 0, "none: every parameter is trained") if full else adapter_item(shape, plan),
        activations_item(shape, plan),
        Item("logits", logits, logits_words(shape, plan)),
        dequantization_item(shape, plan),
        Item(
            "backward workspace",
            max(0, workspace_bytes(shape, plan) - logits),
            "gradients in one block, as far as they exceed the logits, whose memory is free by then",
        ),
        evaluation_item(shape, plan),
        process_item(plan),
    )
    return Estimate(shape, plan, (*items, loading_item(shape, plan, items)))


def weights_item(shape: Shape, plan: Plan) -> Item:
    rotary = FLOAT * shape.head_dim  # two buffers of half the head's width
    if plan.method == "qlora":
        packed = shape.layers * sum(-(-linear.weights // 2) for linear in shape.linears)
        words = (
            f"NF4, half a byte for each of {shape.linear_weights:,} weights of linear layers; embedding, head, norms "
            f"and biases ({shape.other_weights:,}) stay {plan.dtype}"
        )
        return Item("weights", packed + shape.other_weights * plan.element + rotary, words)
    words = f"{shape.parameters:,} parameters in {plan.dtype}, {plan.element} bytes each"
    return Item("weights", shape.parameters * plan.element + rotary, words)


def constant_bytes(shape: Shape) -> int:
    """Scales of NF4 with double quantization, in bytes: about 0.127 bits a weight."""
    per_block = 0
    for linear in shape.linears:
        blocks = -(-linear.weights // BLOCK)
        per_block += blocks + FLOAT * -(-blocks // NESTED_BLOCK) + TABLES_BYTES
    return shape.layers * per_block


def constants_words(quantized: bool) -> str:
    if not quantized:
        return "none: nothing is quantized"
    return "double quantization: a byte for every 64 weights, a float32 for every 256 of those, two code tables a layer"


def gradients_item(shape: Shape, plan: Plan) -> Item:
    if plan.method != "full":
        return Item("gradients", 0, "none for the base, which is frozen; the adapter's are in its item")
    words = f"of every parameter, in {plan.dtype}, {plan.element} bytes each"
    return Item("gradients", shape.parameters * plan.element, words)


def optimizer_item(shape: Shape, plan: Plan) -> Item:
    if plan.method != "full":
        return Item("optimizer", 0, "none for the base, which is frozen; the adapter's is in its item")
    words = OPTIMIZERS[plan.optimizer].words
    each = optimizer_bytes(plan, plan.dtype == "float32")
    total = 2 * plan.element + each
    return Item("optimizer", round(shape.parameters * each), f"{words}; {total:g} with weights and gradients")


def optimizer_bytes(plan: Plan, float32: bool) -> float:
    optimizer = OPTIMIZERS[plan.optimizer]
    return optimizer.state + (0 if float32 else optimizer.master)


def adapter_item(shape: Shape, plan: Plan) -> Item:
    """Weights, gradients and optimizer of the adapter, which Polytone trains in float32 (train/methods/common.py)."""
    count = shape.adapter_weights(plan.rank, plan.targets)
    autocast = DTYPE_COPY if plan.device == "cuda" else 0
    each = 2 * FLOAT + optimizer_bytes(plan, float32=True) + autocast
    words = (
        f"{count:,} parameters of rank {plan.rank} on {', '.join(plan.targets) or 'all linear layers'}: float32 "
        f"weights and gradients, {OPTIMIZERS[plan.optimizer].words}"
    )
    return Item("adapter", round(count * each), words + ("; autocast keeps a bfloat16 copy" if autocast else ""))


def activations_item(shape: Shape, plan: Plan) -> Item:
    otherwise = activation_bytes(shape, replace(plan, checkpointing=not plan.checkpointing))
    words = (
        f"{plan.batch} rows of {plan.length} tokens in {plan.dtype}, "
        + ("the input of every block and one block computed again" if plan.checkpointing else "every block's in full")
        + f"; {'without' if plan.checkpointing else 'with'} gradient checkpointing {otherwise:,} bytes"
    )
    return Item("activations", activation_bytes(shape, plan), words)


def logits_words(shape: Shape, plan: Plan) -> str:
    if plan.loss == "supervised":
        return (
            f"{plan.scored:,} supervised positions ({plan.supervised:g} of all) by {shape.vocabulary:,} words in "
            "float32: logarithms of softmax, the gradient that comes in and the one that goes out"
        )
    if plan.loss == "whole":
        return (
            f"every position by {shape.vocabulary:,} words: {plan.dtype} logits, float32 logarithms and two gradients"
        )
    return "TRL's chunked loss: a tile of at most 4,096 positions by 32,768 words, the head's gradients in float32"


def dequantization_item(shape: Shape, plan: Plan) -> Item:
    if plan.method != "qlora":
        return Item("dequantization", 0, "none: nothing is quantized")
    largest = max(shape.linears, key=lambda linear: linear.weights)
    scales = FLOAT * -(-largest.weights // BLOCK)
    words = f"the largest NF4 layer ({largest.name}) in {plan.dtype} with its scales, one layer at a time"
    return Item("dequantization", largest.weights * plan.element + scales, words)


def evaluation_item(shape: Shape, plan: Plan) -> Item:
    """Measuring comes after training, when the memory of its activations is free."""
    training = activation_bytes(shape, plan) + max(logit_bytes(shape, plan), workspace_bytes(shape, plan))
    beyond = max(0, evaluation_bytes(shape, plan) - training)
    words = f"measuring the voice on {plan.evaluation_rows} held-out rows at a time, as far as it exceeds training"
    return Item("evaluation", beyond, words if plan.evaluation_rows else "none")


def loading_item(shape: Shape, plan: Plan, items: tuple[Item, ...]) -> Item:
    """Loading comes before training; on a CPU the checkpoint is mapped while its weights are converted."""
    if plan.device == "cuda":
        return Item("loading", 0, "none: weights are read in main memory and quantized one by one")
    stored = shape.parameters * STORED_BYTES
    training = sum(item.bytes for item in items if item.name not in HELD_WHILE_LOADING)
    words = f"the checkpoint's {stored:,} bytes in bfloat16, mapped while it is read, as far as training takes less"
    return Item("loading", max(0, stored - training), words)


def process_item(plan: Plan) -> Item:
    if plan.device == "cuda":
        return Item(PROCESS, CUDA_CONTEXT_BYTES, "CUDA context, kernels and cuBLAS, typical and not measured")
    return Item(PROCESS, PROCESS_BYTES, "Python, PyTorch and the training libraries, imported and idle")


def largest_batch(shape: Shape, plan: Plan, memory: int) -> int:
    """The largest batch at the plan's length that fits into `memory` bytes; 0 where not even one row does."""
    low, high = 0, 1
    while high <= LARGEST_BATCH and fits(shape, plan, high, memory):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(shape, plan, middle, memory) else (low, middle)
    return low


def fits(shape: Shape, plan: Plan, batch: int, memory: int) -> bool:
    return estimate(shape, replace(plan, batch=batch)).total_bytes <= memory
