"""Activations that the forward pass saves for the backward pass, logits and workspace, in bytes."""

from .plan import Plan
from .shape import Shape

FLOAT = 4
# TRL 1.16, kernels/chunked_logprob.py: logits are computed tile by tile.
TILE_TOKENS = 4096
TILE_VOCABULARY = 32768
# Without Triton a tile is folded by PyTorch: itself, probabilities, their logarithm, and three products of them.
FOLDED_TILES = 6


def activation_bytes(shape: Shape, plan: Plan) -> int:
    """Bytes saved for the backward pass: every block, or with checkpointing the blocks' inputs and one block."""
    block = layer_bytes(shape, plan)
    inputs = plan.tokens * shape.hidden * plan.element
    blocks = shape.layers * inputs + block if plan.checkpointing else shape.layers * block
    # The embedding's output, the last norm's input and its output, which the head takes.
    return blocks + 2 * inputs + plan.tokens * FLOAT * (shape.hidden + 1)


def layer_bytes(shape: Shape, plan: Plan) -> int:
    """Bytes that one block saves.

    Norms save their input and its scale in float32; attention its queries, output and softmax sums, keys and values
    (repeated for every head where there is a mask, because PyTorch shares them only without one), the mask as numbers;
    the MLP four tensors of its width; every adapted linear layer its input and the narrow product of LoRA.
    """
    adapted = {linear.name for linear in shape.targeted(() if plan.method == "full" else plan.targets)}
    heads = 2 * shape.queries if plan.padded else 2 * shape.keys
    width = 2 * shape.queries + heads + 3 * shape.intermediate  # the output of attention is what o_proj takes
    width += shape.hidden * bool(adapted & {"q_proj", "k_proj", "v_proj"})
    width += shape.hidden * bool(adapted & {"gate_proj", "up_proj"})
    width += shape.intermediate * ("down_proj" in adapted)
    width += plan.length * plan.padded
    if plan.method == "full":
        width += shape.norms * shape.hidden  # a norm's gradient needs what it scaled
    else:
        width += plan.rank * len(adapted)
    normed = shape.norms * (shape.hidden + 1)
    if shape.head_norms:
        normed += shape.queries + shape.keys + shape.heads + shape.key_value_heads
    return plan.tokens * (width * plan.element + (normed + shape.heads) * FLOAT)


def logit_bytes(shape: Shape, plan: Plan) -> int:
    """Logits, their log-softmax and their gradients, as the loss computes them."""
    vocabulary = shape.vocabulary
    if plan.loss == "supervised":
        # The logarithms, the gradient that comes in, and the one that goes out to the head.
        return plan.scored * (3 * vocabulary + shape.hidden) * FLOAT
    if plan.loss == "whole":
        return plan.tokens * vocabulary * (plan.element * (plan.dtype != "float32") + 3 * FLOAT)
    gpu = plan.device == "cuda"
    scored = plan.scored if gpu else plan.tokens
    tile = min(scored, TILE_TOKENS) * min(vocabulary, TILE_VOCABULARY)
    gradient = scored * shape.hidden + (vocabulary * shape.hidden if plan.method == "full" else 0)
    return tile * (plan.element if gpu else FOLDED_TILES * FLOAT) + gradient * FLOAT


def workspace_bytes(shape: Shape, plan: Plan) -> int:
    """Gradients in the backward pass of one block: four as wide as its MLP and three of the hidden size."""
    return plan.tokens * (4 * shape.intermediate + 3 * shape.hidden) * plan.element


def evaluation_bytes(shape: Shape, plan: Plan) -> int:
    """Memory of measuring the voice after training (train/artifact/scoring.py): all logits, no backward pass.

    The logits of all positions, the supervised ones picked, in float32, and their logarithm of softmax; beside them the
    blocks' transient tensors are small.
    """
    positions = plan.evaluation_rows * plan.length
    picked = round(plan.supervised * positions)
    copies = FLOAT + (0 if plan.dtype == "float32" else plan.element) + FLOAT
    return shape.vocabulary * (positions * plan.element + picked * copies)
