"""What `bin/bench words` compares."""

from nasd.contract.genotype import Backbone, Block, FeedForward, Genotype, weights_of_words
from tests.bench.words import shapes

FULL = Genotype((Block(12, (FeedForward("gelu", (1536,)),)),) * 6)
BACKBONE = Backbone(vocab_size=30522, positions=512, width=384)


def test_frequent_words_stand_beside_the_highest_rank_that_is_no_larger_than_the_one_alone() -> (
    None
):
    found = [one.words for one in shapes(FULL, BACKBONE, [96, 10], [500, 1000])]
    # A thousand full rows are more than all words have at rank 10.
    assert found == [(None, 0), (96, 0), (91, 500), (86, 1000), (10, 0), (3, 500)]
    for rank, frequent in ((91, 500), (86, 1000)):
        beside = Genotype(FULL.blocks, rank, frequent)
        alone = weights_of_words(Genotype(FULL.blocks, 96), BACKBONE)
        higher = Genotype(FULL.blocks, rank + 1, frequent)
        assert weights_of_words(beside, BACKBONE) <= alone < weights_of_words(higher, BACKBONE)
