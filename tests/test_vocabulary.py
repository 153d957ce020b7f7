"""A seed whose vocabulary is trimmed: what stays the same, what is refused, and whole searches."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone, Block, FeedForward, Genotype
from nasd.contract.protocol import Verdict
from nasd.control import preflight
from nasd.views import caveats
from nasd.worker import prepare, trimming
from nasd.worker.model import factors, phenotype, vocabulary
from nasd.worker.model.architecture import Architecture
from nasd.worker.model.phenotype import MaskedLM, QuestionAnswering
from nasd.worker.model.seed import load_seed, load_tokenizer
from nasd.worker.tasks import corpus
from nasd.worker.tasks.passages import QaFeatures
from nasd.worker.tasks.windows import of_batches
from nasd.worker.training.progress import quiet
from tests.training import SOURCE, Workshop, demo_config, exported, make_workshop, work

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
KEPT = 150  # of the demo seed's 225


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


def tokenizer_of(tokens: list[str]) -> Any:
    inner = Tokenizer(models.WordPiece({one: n for n, one in enumerate(tokens)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    names = [f"{one[1:-1].lower()}_token" for one in SPECIAL]
    return PreTrainedTokenizerFast(tokenizer_object=inner, **dict(zip(names, SPECIAL, strict=True)))


def counted(tokenizer: Any, **texts: str) -> dict[str, Any]:
    return {
        name: np.bincount(
            tokenizer(text, add_special_tokens=False)["input_ids"], minlength=len(tokenizer)
        )
        for name, text in texts.items()
    }


LETTERS = "abcdé"
PIECES = st.text(LETTERS, min_size=1, max_size=4)


@given(
    st.lists(PIECES, unique=True, max_size=30),
    st.lists(PIECES, unique=True, max_size=30),
    st.lists(st.text(LETTERS, min_size=1, max_size=9), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_what_could_be_written_still_can_and_a_word_of_kept_tokens_is_cut_as_before(
    first: list[str], later: list[str], words: list[str], rng: Any
) -> None:
    tokens = [*SPECIAL, *LETTERS, *(f"##{one}" for one in LETTERS)]
    tokens += sorted({*first, *(f"##{one}" for one in later)} - set(tokens))
    rng.shuffle(tokens)
    whole = tokenizer_of(tokens)
    least = len(SPECIAL) + 2 * len(LETTERS)
    count = rng.randint(least, len(tokens))
    no_refusal = {"alone": np.zeros(len(tokens), dtype=np.int64)}
    kept = vocabulary.chosen(whole, count, no_refusal)
    cut = vocabulary.trimmed_tokenizer(whole, kept)
    assert len(cut) == count == len(kept)
    names = [whole.convert_ids_to_tokens(int(one)) for one in kept]
    assert cut.convert_ids_to_tokens(list(range(count))) == names
    assert set(SPECIAL) <= set(names)
    for word in words:
        before, after = whole.tokenize(word), cut.tokenize(word)
        assert "[UNK]" not in after
        assert "".join(one.removeprefix("##") for one in after) == word
        if set(before) <= set(names):
            assert after == before


def test_a_token_stays_where_a_character_of_it_has_no_piece_of_its_own() -> None:
    whole = tokenizer_of([*SPECIAL, "a", "##a", "aé", "aa", "##aa"])
    kept = vocabulary.chosen(whole, 8, counted(whole, text="aaa aaa aa"))
    cut = vocabulary.trimmed_tokenizer(whole, kept)
    assert cut.tokenize("aé") == ["aé"] and "[UNK]" not in cut.tokenize("aaaaa")


def test_the_most_frequent_stay_and_each_source_counts_alike() -> None:
    words = ["axe", "bed", "cat", "dog"]
    letters = sorted(set("".join(words)))
    whole = tokenizer_of([*SPECIAL, *letters, *(f"##{one}" for one in letters), *words])
    least = len(SPECIAL) + 2 * len(letters)
    counts = counted(whole, one="axe axe axe axe axe axe bed bed dog dog", other="cat bed")
    kept = vocabulary.chosen(whole, least + 3, counts)
    assert set(whole.convert_ids_to_tokens(kept.tolist()[-3:])) == {"axe", "bed", "cat"}
    assert vocabulary.lost(whole, kept, counts) == pytest.approx(2 / 12)


def test_an_added_token_with_capitals_stays_as_it_was_added() -> None:
    tokenizer = tokenizer_of([*SPECIAL, "a", "##a", "b", "##b", "ab"])
    tokenizer.add_tokens(["COVID-19"])
    every = len(tokenizer)
    kept = vocabulary.chosen(tokenizer, every, {"it": np.ones(every, dtype=np.int64)})
    smaller = vocabulary.trimmed_tokenizer(tokenizer, kept)
    assert smaller.get_vocab() == tokenizer.get_vocab()
    assert smaller("a COVID-19 b")["input_ids"] == tokenizer("a COVID-19 b")["input_ids"]


def test_numbers_that_no_token_has_are_passed_over() -> None:
    """As where a line stands twice in a vocab.txt."""
    pieces = ["a", "b", "##a", "##b", "ab", "ba"]
    placed = {one: number + 2 * (number > 5) for number, one in enumerate([*SPECIAL, *pieces])}
    inner = Tokenizer(models.WordPiece(placed, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    names = [f"{one[1:-1].lower()}_token" for one in SPECIAL]
    given = dict(zip(names, SPECIAL, strict=True))
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=inner, **given)
    assert (len(tokenizer), vocabulary.numbers(tokenizer)) == (11, 13)
    counts = trimming._count([["ab ba ba"]], tokenizer, quiet, "it")
    assert counts[[11, 12]].tolist() == [1, 2]
    assert corpus.SpecialTokens.of(tokenizer).vocab_size == 13
    for count, lost in ((10, {"ab"}), (11, set[str]())):
        kept = vocabulary.chosen(tokenizer, count, {"it": counts})
        smaller = vocabulary.trimmed_tokenizer(tokenizer, kept)
        assert set(smaller.get_vocab()) == {*SPECIAL, *pieces} - lost
        assert vocabulary.numbers(smaller) == len(smaller) == count
        assert smaller.decode(smaller("ba")["input_ids"]) == "ba"
    with pytest.raises(NasdError, match="12 tokens are more than it has"):
        vocabulary.chosen(tokenizer, 12, {"it": counts})


@pytest.mark.parametrize("kept", [[0, 2, 3, 5, 6, 9], [1, 4, 7, 8], [0, 1, 2, 4, 7, 8, 9]])
def test_tokens_that_are_kept_keep_their_rows_also_where_some_are_frequent(kept: list[int]) -> None:
    arch = Architecture(10, 8, 12, (), rank=5, frequent=3)
    model = phenotype.empty(MaskedLM, arch)
    phenotype.initialise(model, torch.Generator().manual_seed(1), 0.2)
    with torch.no_grad():
        model.encoder.embeddings.row.copy_(torch.tensor([9, 3, 5, 0, 7, 1, 8, 4, 6, 2]))
    small = vocabulary.trimmed_model(model, np.array(kept))
    assert small.architecture.words == (5, 3)
    assert small.architecture.vocab_size == len(kept)
    wanted, found = (factors.full(one.encoder.embeddings) for one in (model, small))
    torch.testing.assert_close(found, wanted[kept])


def test_a_seed_keeps_more_tokens_than_it_has_frequent_ones_with_embeddings_of_their_own() -> None:
    block = Block(4, (FeedForward("gelu", (64,)),))
    seed = preflight.Seed(Backbone(225, 512, 64), Genotype((block,), 8, 60), has_mlm_head=True)
    with pytest.raises(NasdError, match=r"seed_model\.vocabulary: 60 frequent words of the seed"):
        preflight.check_seed(demo_config(seed_model__vocabulary=60), seed, "c.toml")


def test_the_outputs_are_the_seeds_for_text_of_kept_tokens(shop: Workshop) -> None:
    whole = load_tokenizer(SOURCE, shop.folder)
    spec = shop.spec(None, vocabulary=KEPT)
    words = trimming.words(spec, quiet)
    assert words.kept is not None and len(words.tokenizer) == KEPT and words.known == 225
    model, _ = load_seed(SOURCE, shop.folder, 0.0)
    small = vocabulary.trimmed_model(model, words.kept).eval()
    rows = model.encoder.embeddings.word.weight[torch.from_numpy(words.kept)]
    assert small.encoder.embeddings.word.weight.equal(rows)
    names = set(words.tokenizer.get_vocab())
    corpus = re.split(r"(?<=\.)\s+", (shop.folder / "demo-data/corpus.txt").read_text())
    same = [line for line in corpus if line and set(whole.tokenize(line)) <= names][:20]
    assert len(same) == 20
    renumbered = 0
    for line in same:
        before, after = (
            one(line, return_tensors="pt").input_ids[:, :64] for one in (whole, words.tokenizer)
        )
        renumbered += not torch.equal(before, after)
        with torch.no_grad():
            wanted = model.eval()(before)[..., torch.from_numpy(words.kept)]
            assert (small(after) - wanted).abs().max() < 1e-6
    assert renumbered


def test_test_questions_do_not_say_what_stays(shop: Workshop, tmp_path: Path) -> None:
    """The same counts, whatever stands in the questions that give the score."""
    data = json.loads((shop.folder / "demo-data/squad.json").read_text())
    spec = shop.spec(None, vocabulary=KEPT)
    questions = prepare.read_questions(spec.data.qa, shop.folder, quiet).sound
    _, test = prepare.parted(questions, spec.data.qa, spec.seed)
    tests = {one.title for one in test}
    for article in data["data"]:
        if article["title"] in tests:
            for passage in article["paragraphs"]:
                passage["context"] += " zzzz" * 50
    (tmp_path / "demo-data").mkdir()
    (tmp_path / "demo-data/squad.json").write_text(json.dumps(data))
    (tmp_path / "demo-data/corpus.txt").write_text(
        (shop.folder / "demo-data/corpus.txt").read_text()
    )
    there = spec.model_copy(update={"config_folder": str(tmp_path), "cache": str(tmp_path / "c")})
    one, other = trimming.words(spec, quiet), trimming.words(there, quiet)
    assert one.kept is not None and other.kept is not None
    assert one.kept.tolist() == other.kept.tolist() and one.lost == other.lost


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (10, "fewer than it needs, as the seed's tokenizer knows 225, and 8"),
        (226, "more than it has"),
    ],
)
def test_a_count_that_cannot_be_is_refused_before_anything_is_written(
    shop: Workshop, count: int, told: str
) -> None:
    config = demo_config(seed_model__vocabulary=count)
    with pytest.raises(NasdError, match=r"seed_model\.vocabulary: [^.]*tokens are " + told):
        preflight.check(config, shop.folder, "config.toml")


def test_the_check_tells_the_backbone_that_the_search_will_have(shop: Workshop) -> None:
    config = demo_config(seed_model__vocabulary=KEPT)
    assert preflight.check(config, shop.folder, "config.toml").backbone.vocab_size == KEPT


def test_a_vocabulary_that_loses_a_script_is_refused() -> None:
    greek, latin = "αβγ", "abc"
    words = ["αβγ", "βγ", "γα", "abc", "cab", "bca"]
    pieces = [*greek, *latin, *(f"##{one}" for one in greek + latin)]
    whole = tokenizer_of([*SPECIAL, *pieces, *words])
    least = len(SPECIAL) + len(pieces)
    text = "abc cab bca " * 200 + "αβγ βγ γα " * 20
    with pytest.raises(NasdError, match=r"100 % of the words in Greek letters in texts would"):
        vocabulary.chosen(whole, least + 3, counted(whole, texts=text))
    vocabulary.chosen(whole, least + 5, counted(whole, texts=text))


def test_another_kind_of_tokenizer_is_refused() -> None:
    inner = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    with pytest.raises(NasdError, match="of the kind BPE, and only those of the kind WordPiece"):
        vocabulary.check(PreTrainedTokenizerFast(tokenizer_object=inner), 2)


def test_prepare_leaves_a_seed_with_the_kept_tokens_its_head_and_caches_of_their_own(
    shop: Workshop, tmp_path: Path
) -> None:
    home = exported(shop, 0.1, tmp_path / "mine")
    spec = shop.spec(None, vocabulary=KEPT, source=str(home), keeps_qa_head=True)
    folder, outcome = work(spec, shop.folder / "prepared")
    assert outcome is not None and outcome.verdict is Verdict.SUCCEEDED, folder.log.read_text()
    prepared = outcome.prepared
    assert prepared is not None and prepared.keeps_qa_head
    model = phenotype.load(QuestionAnswering, folder.result)
    theirs = phenotype.load(QuestionAnswering, home)
    assert model.qa_outputs.weight.equal(theirs.qa_outputs.weight)
    assert model.architecture.vocab_size == KEPT
    assert prepared.parameters == sum(one.numel() for one in model.encoder.parameters())
    assert prepared.seed_parameters == sum(one.numel() for one in theirs.encoder.parameters())
    assert prepared.qa_cache != shop.prepared.qa_cache
    assert int(QaFeatures.load(Path(prepared.qa_cache) / "train").tokens.max()) < KEPT
    (told,) = [one for one in caveats.of(prepared.model_dump()) if "vocabulary" in one]
    share = 100 * prepared.parameters / prepared.seed_parameters
    assert f"{share:.1f} % of the seed's" in told
    # Asked again, for a later attempt, it is the same.
    again = trimming.words(spec, quiet)
    assert len(load_tokenizer(str(folder.result), Path())) == KEPT
    assert again.tokenizer.get_vocab() == load_tokenizer(str(folder.result), Path()).get_vocab()


def test_words_are_counted_in_what_is_trained_on_and_not_in_what_is_held_out(
    shop: Workshop,
) -> None:
    cache = Path(shop.prepared.qa_cache)
    train = QaFeatures.load(cache / "train")
    counts = of_batches(train, 5, np.arange(10)).counts
    assert counts is not None
    wanted = np.bincount(train.take(np.arange(10, len(train))).tokens, minlength=len(counts()))
    assert counts().tolist() == wanted.tolist()
