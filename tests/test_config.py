"""config.toml: what it says, and every way to get it wrong."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nasd.contract import config as config_module
from nasd.contract import ranges
from nasd.contract.config import (
    Config,
    Corpus,
    Rung,
    Stage,
    check_against_seed,
    check_against_slots,
    load,
    parse,
)
from nasd.contract.errors import NasdError
from nasd.contract.genotype import Backbone
from nasd.contract.mistakes import section_in
from nasd.presets import PRESETS, preset_text
from tests.conftest import ROOT, small_config, small_dict, thesis_config, to_toml

# -- bad input -----------------------------------------------------------------------------------

STAGES = "stages__"
NAN, INFINITY = float("nan"), float("inf")

BAD: list[tuple[dict[str, Any], str, str]] = [
    # what is changed, the key that is named, what else the sentence says
    ({"population__muu": 8}, "population.muu", "did you mean mu?"),
    ({"population__lamda": 8}, "population.lamda", "did you mean lambda?"),
    ({"population__lambda_": 8}, "population.lambda_", "did you mean lambda?"),
    ({"populaton__mu": 8}, "populaton", "did you mean population?"),
    ({"stages__finetune__epoch": 2}, "stages.finetune.epoch", "did you mean epochs?"),
    ({"stages__finetune__learning_rte": 2}, "stages.finetune.learning_rte", "learning_rate?"),
    ({"variation__initial__encode": 2}, "variation.initial.encode", "did you mean encoder?"),
    ({"data__mlm__token": 2}, "data.mlm.token", "did you mean tokens?"),
    ({"data__mlm__corpora": [{"fils": ["a"]}]}, "data.mlm.corpora[0].fils", "did you mean files?"),
    (
        {"experiment__zzz": 1},
        "experiment.zzz",
        "known here: budget_gpu_hours, generations, limits, name",
    ),
    ({"population__mu": None}, "population.mu", "is missing"),
    ({"seed_model": None}, "seed_model", "is missing"),
    ({"stages": []}, "stages", "at least 1 item"),
    ({"population__mu": "eight"}, "population.mu", "'eight'"),
    ({"population__mu": "8"}, "population.mu", "'8'"),
    ({"population__mu": True}, "population.mu", "True"),
    ({"population__mu": 8.5}, "population.mu", "8.5"),
    ({"population__mu": 0}, "population.mu", "greater than or equal to 1"),
    ({"population__tournament": -1}, "population.tournament", "(it is -1)"),
    ({"population": 3}, "population", "(it is 3)"),
    ({"experiment__name": ""}, "experiment.name", "at least 1 character"),
    ({"experiment__generations": -1}, "experiment.generations", "(it is -1)"),
    ({"experiment__budget_gpu_hours": 0}, "experiment.budget_gpu_hours", "greater than 0"),
    ({"experiment__budget_gpu_hours": INFINITY}, "experiment.budget_gpu_hours", "finite"),
    ({"slots__devices": ["gpu0"]}, "slots.devices", '["gpu0"]'),
    ({"slots__devices": []}, "slots.devices", 'take "auto", or a list'),
    ({"slots__devices": "cuda:0"}, "slots.devices", 'take "auto", or a list'),
    ({"slots__precision": "float16"}, "slots.precision", "'bfloat16'"),
    ({"stages__pretrain_0__keep": 0}, "stages.pretrain_0.keep", "greater than 0"),
    ({"stages__pretrain_0__keep": 1.01}, "stages.pretrain_0.keep", "less than or equal to 1"),
    ({"stages__pretrain_0__keep": -0.5}, "stages.pretrain_0.keep", "(it is -0.5)"),
    ({"stages__pretrain_0__keep": NAN}, "stages.pretrain_0.keep", "finite"),
    ({"stages__pretrain_0__weight_decay": NAN}, "stages.pretrain_0.weight_decay", "finite"),
    ({"stages__finetune__keep": 0.5}, "stages.finetune", "keep stands only on an MLM stage"),
    ({"stages__finetune__slots": 0}, "stages.finetune.slots", "(it is 0)"),
    ({"stages__finetune__epochs": None}, "stages.finetune", "epochs and learning_rate are missing"),
    ({"stages__finetune__task": "ner"}, "stages.finetune.task", "'mlm', 'qa', 'classify'"),
    ({"stages__finetune__train": "new"}, "stages.finetune", 'train = "new" stands only'),
    ({"stages__evaluate__epochs": 1}, "stages.evaluate", "no meaning"),
    ({"stages__evaluate__average": 0.5}, "stages.evaluate", "no meaning"),
    ({"stages__evaluate__soup": 2}, "stages.evaluate", "no meaning"),
    ({"stages__finetune__soup": 0}, "stages.finetune.soup", "greater than or equal to 1"),
    (
        {"stages__finetune__soup": 2, "stages__finetune__rungs": [{"at": 0.5, "keep": 0.5}]},
        "stages.finetune",
        "soup stands on no stage with rungs",
    ),
    ({"stages__finetune__average": 1}, "stages.finetune.average", "less than 1"),
    (
        {"stages__finetune__average": 0.5, "stages__finetune__rungs": [{"at": 0.5, "keep": 0.5}]},
        "stages.finetune",
        "average stands on no stage with rungs",
    ),
    ({"stages__pretrain_head__who": "all"}, "stages.pretrain_head", 'who = "baseline"'),
    ({"stages__finetune__name": "Fine Tune"}, "stages.Fine Tune.name", "'Fine Tune'"),
    ({"stages__finetune__name": "pretrain_0"}, "stages", "'pretrain_0' is taken"),
    ({"stages__finetune__name": "prepare"}, "stages", "'prepare' is taken"),
    ({"stages__evaluate__who": "baseline"}, "stages", "the ladder of the candidates must end"),
    ({"stages__evaluate__who": "candidates"}, "stages", "the ladder of the baseline must end"),
    ({"stages__finetune__who": "candidates"}, "stages", "nothing trains the baseline"),
    ({"search_space__blocks": [6, 4]}, "search_space", "fewest <= most"),
    ({"search_space__blocks": [6]}, "search_space.blocks[1]", "is missing"),
    ({"search_space__layers": [1, 2]}, "search_space.layers[0]", "(it is 1)"),
    ({"search_space__heads": 4}, "search_space.heads", "input should be a valid list (it is 4)"),
    ({"search_space__heads": []}, "search_space.heads", "at least 1 item"),
    ({"search_space__activations": ["tanh"]}, "search_space.activations[0]", "'tanh'"),
    ({"variation__initial__ffn": 1.2}, "variation.initial.ffn", "(it is 1.2)"),
    ({"data__qa__stride": 48}, "data.qa", "stride must be smaller than tokens"),
    ({"data__qa__hub": "squad"}, "data.qa", "give either files or hub"),
    ({"data__qa__files": []}, "data.qa", "give either files or hub"),
    ({"data__qa__split_by": "page"}, "data.qa.split_by", "'article' or 'record'"),
    ({"data__qa__train_share": 1.0}, "data.qa.train_share", "less than 1"),
    (
        {"data__mlm__corpora": [{"files": ["a"], "hub": "b"}]},
        "data.mlm.corpora[0]",
        "give either files or hub",
    ),
    ({"data__mlm__corpora": []}, "data.mlm.corpora", "at least 1 item"),
    ({"data__mlm__tokens": 4}, "data.mlm.tokens", "(it is 4)"),
    ({"data__mlm__mask_share": 1.0}, "data.mlm.mask_share", "less than 1"),
    ({"data__mlm__fixed_masks": "yes"}, "data.mlm.fixed_masks", 'take "auto", true or false'),
    ({"slots__compile": 1}, "slots.compile", 'take "auto", true or false'),
    (
        {"daemon__activation_cache_gb": -1},
        "daemon.activation_cache_gb",
        "greater than or equal to 0",
    ),
    ({"daemon__tick_seconds": 0}, "daemon.tick_seconds", "greater than 0"),
    ({"daemon__infrastructure_retries": -1}, "daemon.infrastructure_retries", "(it is -1)"),
]


def numbers(model: type[BaseModel] = Config, path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key whose value is a number, or a list of them; each section's once, however many have
    it, and a stage by its name."""
    for name, field in model.model_fields.items():
        key = f"{path}{field.alias or name}"
        below = section_in(field.annotation)
        if below is Stage or (get_origin(field.annotation) is dict and below is not None):
            yield from numbers(below, f"{key}__finetune__")
        elif name == "offspring":  # the same section as initial, and the same values in this file
            continue
        elif below is not None and below not in (Corpus, Rung):  # lists of tables
            yield from numbers(below, f"{key}__")
        elif re.search(r"\b(int|float)\b", str(field.annotation)):
            yield key, field


NUMBERS = dict(numbers())


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize(
    "number",
    [int("9" * 4000), 10**400, -(10**30), 1e308, INFINITY],
    ids=["of 4,000 digits", "beyond floats", "below", "a float", "infinite"],
)
def test_no_number_is_without_a_range_and_a_message_about_one_is_short(key: str, number: float):
    value: Any = number
    if "tuple" in str(NUMBERS[key].annotation):
        value = [number, number]
    if "dict" in str(NUMBERS[key].annotation):
        value = {"narrow": number}
    with pytest.raises(NasdError) as caught:
        parse(small_dict(**{key: value}), "c.toml")
    sentence = str(caught.value)
    assert sentence.startswith(f"c.toml: {key.replace('__', '.')}")
    assert len(sentence) < 250
    if isinstance(number, int) or "int" not in str(NUMBERS[key].annotation):
        assert f"; the range is {ranges.words(NUMBERS[key])}" in sentence


def test_the_numbers_that_are_checked_are_those_of_a_config():
    assert len(NUMBERS) > 40
    assert {
        "experiment__seed",
        "search_space__sizes",
        "data__qa__n_best",
        "daemon__backup_hours",
    } < {*NUMBERS}


@pytest.mark.parametrize(
    "text", ["a = 1\nb = " + "7" * 5000, "a = " + "[" * 5000, "a = 0x" + "f" * 5000]
)
def test_a_text_that_pythons_parser_stumbles_over_is_one_short_sentence(tmp_path, text):
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(NasdError) as caught:
        load(tmp_path / "config.toml")
    assert len(str(caught.value).removeprefix(str(tmp_path))) < 250
    assert "\n" not in str(caught.value)
    if "b =" in text:
        assert "line 2: a number of thousands of digits" in str(caught.value)


def test_a_byte_order_mark_before_the_config_is_no_part_of_it(tmp_path):
    (tmp_path / "config.toml").write_text(to_toml(small_dict()), encoding="utf-8-sig")
    assert load(tmp_path / "config.toml") == small_config()


@pytest.mark.parametrize(("change", "key", "words"), BAD, ids=[f"{k}: {w}" for _, k, w in BAD])
def test_a_mistake_is_one_sentence_that_names_file_and_key(change, key, words):
    with pytest.raises(NasdError) as caught:
        parse(small_dict(**change), "my/config.toml")
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert re.match(
        rf"my/config\.toml: ((unknown|the) key )?{re.escape(key)}(: | is |; | \(|$)", sentence
    ), sentence
    assert words in sentence


def test_a_ladder_that_trains_no_language_model_is_refused():
    data = small_dict()
    data["stages"] = [one for one in data["stages"] if one["task"] == "qa"]
    with pytest.raises(NasdError, match="at least one MLM stage must train the candidates"):
        parse(data, "config.toml")


def test_an_unknown_key_is_named_before_the_one_that_it_was_meant_to_be():
    with pytest.raises(NasdError, match=r"unknown key population\.lamda; did you mean lambda"):
        parse(small_dict(population__lambda=None, population__lamda=4), "config.toml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no config file"),
        (b"name = ", "is not valid TOML"),
        (b"\xff\xfe", "cannot be read"),
        (b"", "the key experiment is missing"),
        (b"[a]\nb = 1\n[a]\n", "is not valid TOML"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: bytes | None, words: str):
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NasdError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_place_of_the_config_is_named(tmp_path: Path):
    with pytest.raises(NasdError, match=r"cannot be read: .*directory"):
        load(tmp_path)


def test_a_stage_that_asks_for_more_slots_than_exist_is_named():
    config = small_config(stages__finetune__slots=5)
    with pytest.raises(NasdError, match=r"c\.toml: stages\.finetune\.slots: 5 slots .* has 4"):
        check_against_slots(config, 4, "c.toml")
    check_against_slots(config, 5, "c.toml")


def test_a_batch_that_cannot_be_dealt_out_to_its_slots_is_named():
    config = small_config(stages__finetune__slots=4, stages__finetune__batch=3)
    with pytest.raises(NasdError, match=r"stages\.finetune\.batch: a batch of 3 .* 4 slots"):
        check_against_slots(config, 4, "c.toml")


@pytest.mark.parametrize(
    ("width", "positions", "words"),
    [
        (36, 64, "search_space.heads: 8 heads do not divide the seed's width 36"),
        (32, 31, "data.mlm.tokens: 32 tokens are more than the seed's 31 positions"),
        (32, 40, "data.qa.tokens: 48 tokens are more than the seed's 40 positions"),
    ],
)
def test_what_does_not_fit_the_seed_is_named(width, positions, words):
    with pytest.raises(NasdError, match=words):
        check_against_seed(small_config(), Backbone(225, positions, width), "c.toml")


def test_heads_and_tokens_that_fit_the_seed_pass():
    check_against_seed(small_config(), Backbone(225, 48, 32), "c.toml")


@given(st.floats(min_value=0, max_value=1, exclude_min=True))
def test_every_keep_above_0_and_up_to_1_is_taken(keep):
    assert small_config(stages__pretrain_0__keep=keep).stages[1].keep == keep


@given(st.one_of(st.floats(max_value=0), st.floats(min_value=1, exclude_min=True)))
def test_every_other_keep_is_refused(keep):
    with pytest.raises(NasdError, match=r"stages\.pretrain_0\.keep"):
        small_config(stages__pretrain_0__keep=keep)


# -- what a good one says ------------------------------------------------------------------------


def test_a_config_comes_back_the_same_through_toml_and_through_json(tmp_path: Path):
    config = small_config()
    (tmp_path / "config.toml").write_text(to_toml(small_dict()))
    assert load(tmp_path / "config.toml") == config
    assert parse(config.model_dump(mode="json", by_alias=True), "database") == config


def test_a_whole_number_may_stand_where_a_fraction_may():
    assert small_config(stages__finetune__epochs=3).stages[3].epochs == 3


def test_candidates_and_the_baseline_climb_their_own_ladders():
    def names(who):
        return [stage.name for stage in small_config().ladder(who)]

    assert names("candidates") == ["pretrain_0", "pretrain_1", "finetune", "evaluate"]
    assert names("baseline") == ["pretrain_head", "finetune", "evaluate"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_config_that_its_own_slots_can_run(name: str, tmp_path: Path):
    path = tmp_path / "config.toml"
    path.write_text(preset_text(name), encoding="utf-8")
    config = load(path)
    assert config.slots.devices != "auto"
    check_against_slots(config, len(config.slots.devices), name)


def test_the_thesis_preset_is_the_config_as_shipped_byte_for_byte():
    shipped = (ROOT / "config.toml").read_bytes()
    assert preset_text("thesis").encode() == shipped


THESIS = {  # of A. Paraskeva's thesis, by its sections
    "experiment.generations": 3,  # 5.3
    "population.mu": 8,  # 5.3
    "population.lambda_": 12,  # 5.3
    "population.tournament": 3,  # 4.2.3
    "seed_model.source": "distilbert/distilbert-base-uncased",  # 5.1
    "variation.offspring.encoder": 0.2,  # 4.2.1, and so on
    "variation.offspring.encoder_add": pytest.approx(2 / 3),
    "variation.offspring.ffn": 0.4,
    "variation.offspring.ffn_add": pytest.approx(2 / 3),
    "variation.offspring.attention": 0.4,
    "search_space.activations": ("relu", "gelu"),  # 4.1
    "data.mlm.tokens": 512,  # 5.2.1
    "data.mlm.mask_share": 0.15,
    "data.qa.tokens": 384,  # 5.2.2
    "data.qa.train_share": 0.8,
    "stages.pretrain_0.epochs": 4,  # 4.2.4
    "stages.pretrain_0.train": "new",
    "stages.pretrain_0.keep": 0.5,
    "stages.pretrain_0.slots": 2,  # Table 2
    "stages.pretrain_1.epochs": 8,
    "stages.pretrain_1.train": "all",
    "stages.pretrain_1.keep": None,
    "stages.pretrain_1.slots": 2,
    "stages.finetune.epochs": 3,  # 4.2.5
    "stages.finetune.slots": 2,
    "stages.evaluate.slots": 1,
    "stages.evaluate.train": "none",
}


@pytest.mark.parametrize(("key", "value"), THESIS.items())
def test_the_config_as_shipped_says_what_the_thesis_says(key: str, value: Any):
    place: Any = thesis_config()
    for part in key.split("."):
        if isinstance(place, tuple):
            place = next(stage for stage in place if stage.name == part)
        else:
            place = getattr(place, part)
    assert place == value


def test_the_config_as_shipped_stands_on_four_gpus():
    assert thesis_config().slots.devices == ("cuda:0", "cuda:1", "cuda:2", "cuda:3")


def test_initial_mutation_is_more_aggressive_than_that_of_offspring():
    variation = thesis_config().variation  # 4.2.2
    for rate in ("encoder", "ffn", "attention"):
        assert getattr(variation.initial, rate) > getattr(variation.offspring, rate)


def test_new_modules_train_before_all_of_them_and_answers_come_last():
    ladder = thesis_config().ladder("candidates")
    assert [stage.name for stage in ladder] == ["pretrain_0", "pretrain_1", "finetune", "evaluate"]


# Settings of nasd itself, not of the experiment: what they do is enough.
OWN = {"name", "task", "who", "state", "micro_batch"}
SOURCE = re.compile(r"\[open|\b[1-8](\.\d)+\b|\bTable \d|\b8:")


def test_every_value_as_shipped_names_its_source_or_is_marked_open():
    lines = (ROOT / "config.toml").read_text(encoding="utf-8").splitlines()
    above, explained, silent = "", set(), []
    for number, line in enumerate(lines[: lines.index("[daemon]")]):
        if line.startswith("["):
            section = _comment(lines, number)
            # A section's comment speaks for its values only where it says so.
            above = section if "[variation." in line or "all of it" in section else ""
        key, _, value = (part.strip() for part in line.partition("#")[0].partition("="))
        if not value or key in OWN or line.startswith(" "):  # a list item: see its key
            continue
        if SOURCE.search(_comment(lines, number) + above):
            explained.add((key, value))
        elif (key, value) not in explained:  # said once, where it stands first
            silent.append(line)
    assert silent == []


def _comment(lines: list[str], number: int) -> str:
    """The comment beside a line, and how it goes on below; of a list, also its items'."""
    found = [lines[number].partition("#")[2]]
    for line in lines[number + 1 :]:
        if not line.startswith((" ", "]")):
            break
        found.append(line.partition("#")[2])
    return " ".join(found)


def test_loading_a_config_touches_nothing_but_the_file(tmp_path: Path):
    (tmp_path / "config.toml").write_text(to_toml(small_dict()))
    config_module.load(tmp_path / "config.toml")
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]
