"""Texts with labels for the tests, of the demo's sentences, and configs of searches on them."""

import json
import random
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

from nasd.contract import tasks
from nasd.contract.config import Config, parse
from nasd.presets import rewritten
from nasd.presets.demo import squad_data

LABELLED = (tasks.CLASSIFY.name, tasks.REGRESS.name, tasks.TAG.name)
FILES = {name: f"{name}.jsonl" for name in LABELLED}
COLOURS = ("red", "blue", "green", "grey", "white", "black", "brown", "yellow", "orange")


def sentences() -> list[str]:
    """Each once, in a fixed order."""
    found = [
        sentence.strip() + "."
        for article in squad_data()["data"]
        for paragraph in article["paragraphs"]
        for sentence in paragraph["context"].split(".")
        if any(f" {colour} " in f" {sentence.strip()} " for colour in COLOURS)
    ]
    return list(dict.fromkeys(found))


def rows(task: str, count: int = 240) -> list[dict[str, Any]]:
    """classify: which of three groups the colour is of. regress: a pair, and the share of the
    second's words that are in the first. tag: the colours, and who does it, by name."""
    texts = sentences()
    random.Random(3).shuffle(texts)
    if task == tasks.CLASSIFY.name:
        return [{"text": text, "label": _group(text)} for text in texts[:count]]
    if task == tasks.REGRESS.name:
        pairs = pairwise(texts[: count + 1])
        return [
            {"sentence1": one, "sentence2": two, "score": _alike(one, two)} for one, two in pairs
        ]
    return [_tagged(text) for text in texts[:count]]


def _group(text: str) -> str:
    words = text.split()
    return ("bright", "dull", "other")[next(i for i, c in enumerate(COLOURS) if c in words) % 3]


def _alike(one: str, two: str) -> float:
    first, second = ({*text.lower().rstrip(".").split()} for text in (one, two))
    return round(5 * len(first & second) / len(second), 2)


def _tagged(text: str) -> dict[str, Any]:
    words = text.rstrip(".").split()
    tags = ["O"] * len(words)
    for place, word in enumerate(words):
        if word in COLOURS:
            tags[place] = "B-THING"
            if place + 1 < len(words):
                tags[place + 1] = "I-THING"
        elif word[0].isupper() and place:
            tags[place] = "B-WHO"
    return {"tokens": words, "ner_tags": tags}


def write(folder: Path, task: str, count: int = 240) -> Path:
    """The task's file."""
    path = folder / FILES[task]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(task, count)))
    return path


def search_values(task: str, **changes: Any) -> dict[str, Any]:
    """Of the demo's preset, where the task is to be searched for, tiny."""
    section = f"data.{tasks.of(task).data}"
    return {
        "data.qa": None,
        f"{section}.files": [FILES[task]],
        f"{section}.tokens": 48,
        "experiment.name": task,
        "stages.finetune_baseline.task": task,
        "stages.finetune.task": task,
        "stages.evaluate.task": task,
        "stages.finetune_baseline.epochs": 2,
        "stages.finetune.epochs": 1,
        "experiment.generations": 1,
        "experiment.limits": [],
        "population.finishing": 0,
        "population.mu": 2,
        "population.lambda": 2,
        "population.screened": 2,
        "slots.devices": ["cpu:0"],
        "daemon.tick_seconds": 0.1,
        **changes,
    }


def search_text(task: str, **changes: Any) -> str:
    return rewritten("demo", "# A search of the tests.\n", search_values(task, **changes))


def search_config(task: str, **changes: Any) -> Config:
    return parse(tomllib.loads(search_text(task, **changes)), "tests")
