"""`python -m nasd.worker.check`: looks at a seed, and for data sets of the hub. Writes nothing.

Reads one JSON object, {"source", "folder", "hubs": {key: [name, config, revision, column]}, "data":
{"data", "seed", "stages"} or null, "teacher": [teacher] from outside or null, "tokens": of the
longest window that it is shown, "vocabulary": how many of the seed's tokens are kept, or null}, and
prints one JSON line: {"backbone", "baseline",
"has_mlm_head", "heads", "attention_dropout": as the seed's own config says, "fault": why the head
of the data's task cannot be kept, "" where it can,
"known": what nasd.worker.data_check tells}, or {"error": one sentence}.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nasd.contract import tasks
from nasd.contract.errors import NasdError


def main() -> None:
    question = json.load(sys.stdin)
    try:
        print(json.dumps(_answer(question)))
    except NasdError as error:
        print(json.dumps({"error": str(error)}))


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    from nasd.contract.config import Data, Stage, Teacher
    from nasd.worker import data_check, trimming
    from nasd.worker.model import outside, seed, seed_heads, vocabulary
    from nasd.worker.tasks import hub

    source, folder = question["source"], Path(question["folder"])
    description = seed.describe(source, folder)
    tokenizer = seed.load_tokenizer(source, folder)
    for key, (name, config, revision, column) in question["hubs"].items():
        _check_hub(key, hub.place(name, key, folder), config, revision, column)
    if (settings := question.get("teacher")) is not None:
        wanted = outside.Wanted()
        if (known_data := question["data"]) is not None:
            data = Data(**known_data["data"])
            told = data_check.labels(data, folder, known_data["seed"])
            wanted = outside.Wanted.of(Teacher(**settings), data, told)
        width = description.backbone.width
        outside.look(Teacher(**settings), folder, tokenizer, question["tokens"], width, wanted)
    known, fault = {}, ""
    backbone = description.backbone
    if (count := question["vocabulary"]) is not None:
        vocabulary.check(tokenizer, count)
        backbone = replace(backbone, vocab_size=count)
    if (wanted := question["data"]) is not None:
        data = Data(**wanted["data"])
        if count is not None:
            tokenizer = trimming.glance(data, folder, tokenizer, wanted["seed"], count)
        known = data_check.look(
            data,
            folder,
            tokenizer,
            wanted["seed"],
            [Stage(**stage) for stage in wanted["stages"]],
        )
        told = data_check.labels(data, folder, wanted["seed"])
        if told.names and tasks.scored(data).kind in description.heads:
            fault = seed_heads.misfit(description.labels, told)
    return {
        "known": known,
        "fault": fault,
        "backbone": asdict(backbone),
        "baseline": description.baseline.to_json(),
        "has_mlm_head": description.has_mlm_head,
        "heads": description.heads,
        "attention_dropout": description.architecture.attention_dropout,
    }


def _check_hub(
    key: str, name: str, config: str | None, revision: str | None, column: str | None
) -> None:
    """Raises NasdError unless the hub, or the local cache of it, has the data set, and this has the
    column, as far as it says which it has."""
    import datasets

    try:
        features = datasets.load_dataset_builder(name, config, revision=revision).info.features
    except Exception as error:
        lines = str(error).splitlines() or [repr(error)]
        raise NasdError(
            f"{key}: the data set {name} is neither on the hub nor in the local cache: {lines[0]}"
        ) from error
    if features and column is not None and column not in features:
        raise NasdError(f"{key}: {name} has no column {column!r}, only {', '.join(features)}")


if __name__ == "__main__":
    main()
