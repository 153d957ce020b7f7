"""What a model weighs and does, worked out from its genotype alone."""

from itertools import pairwise

from nasd.contract.genotype import (
    Backbone,
    Block,
    Genotype,
    parameters,
    weights_of_attention,
    weights_of_ffn,
)

FLOAT32 = 4  # bytes
ANSWERS = 2  # outputs of the head for questions: an answer's start and its end


def flop(genotype: Genotype, backbone: Backbone, batch: int, tokens: int) -> int:
    """Floating-point operations of one forward pass of the encoder over so many examples of so many
    tokens: two a weight and token, and attention's two products of every token with every other
    that it looks at (of a local one those nearby, though but for packed texts on a GPU nasd's own
    computes the others too, and leaves them out of account). Norms, activations, and the head for
    questions are less than 1 % of it, and left out."""
    width = backbone.width
    inner = backbone.embedding_width or width
    each = 0 if genotype.rank is None else 2 * genotype.rank * inner
    each += 0 if backbone.embedding_width is None else 2 * inner * width
    for block in genotype.blocks:
        each += 2 * weights_of_attention(block, width)
        each += convolutions_flop(block, width)
        each += sum(2 * weights_of_ffn(ffn, width) for ffn in block.ffns)
    compared = sum(
        block.inner(width) * _pairs(block, backbone.window, tokens) for block in genotype.blocks
    )
    return batch * (tokens * each + 4 * compared)


def convolutions_flop(block: Block, width: int) -> int:
    """Of those in and beside its attention, for a token."""
    found = 0 if block.convolution is None else 6 * block.convolution * block.inner(width)
    return found + (0 if block.branch is None else 2 * (block.branch * width + width**2))


def _pairs(block: Block, window: int | None, tokens: int) -> int:
    """How many tokens the block's attention looks at, over all of so many tokens."""
    if block.role != "local" or window is None or window >= tokens:
        return tokens**2
    return tokens * (2 * window + 1) - window * (window + 1)


def exported_bytes(genotype: Genotype, backbone: Backbone) -> int:
    """Of the weights of an exported model that answers questions, in float32; the file has some
    hundred bytes for each tensor's name and shape on top."""
    head = ANSWERS * (backbone.width + 1)
    if backbone.deep_head:  # its layer, and that one's norm
        head += backbone.width * (backbone.width + 1 + 2 * backbone.biases)
    rows = backbone.vocab_size if genotype.frequent else 0  # where each word stands
    return FLOAT32 * (parameters(genotype, backbone) + head + rows)


def int8_bytes(genotype: Genotype, backbone: Backbone) -> int:
    """Of the weights of the same model in int8 (nasd.worker.int8): a byte for each entry of a
    matrix or of the word embeddings, with a scale in float32 and a zero for each column, or a scale
    for each token; positions, norms, biases and depthwise convolutions in float32; where some
    words stand in a table of their own, in which row each does. The file has its graph on top."""
    width, words = backbone.width, backbone.vocab_size
    rank, often = genotype.rank or width, genotype.frequent
    found = (words - often) * (rank + FLOAT32) + often * (width + FLOAT32)
    found += (FLOAT32 * words if often else 0) + FLOAT32 * (backbone.positions + 2) * width
    if genotype.rank is not None:
        found += _int8_matrix(rank, width)
    norm = 2 * FLOAT32 * width
    for block in genotype.blocks:
        inner = block.inner(width)
        found += norm + 3 * _int8_layer(width, inner) + _int8_layer(inner, width)
        found += 0 if block.convolution is None else 3 * FLOAT32 * block.convolution * inner
        if block.branch is not None:
            found += FLOAT32 * block.branch * width + _int8_layer(width, width)
        for ffn in block.ffns:
            layers = pairwise((width, *ffn.sizes, width))
            found += norm + sum(_int8_layer(into, out) for into, out in layers)
    return found + _int8_layer(width, ANSWERS)


def _int8_matrix(into: int, out: int) -> int:
    return into * out + out * (FLOAT32 + 1)


def _int8_layer(into: int, out: int) -> int:
    return _int8_matrix(into, out) + FLOAT32 * out
