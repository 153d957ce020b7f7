"""What a person should know of the data before reading a score: one sentence each."""

import math
from collections.abc import Iterator, Mapping
from statistics import NormalDist
from typing import Any

LEVEL = 0.95
# Half an interval, in points of EM, from which on a test set is too small to tell candidates apart.
TOO_WIDE = 5.0
BYTES = 4  # of a parameter in float32
# Of tokens. English text has next to none with an English vocabulary.
MUCH_UNKNOWN = 0.01


def margin(questions: int, share: float = 0.5) -> float:
    """Points by which the choice of so many questions moves an EM of this share, either way."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    return 100 * z * math.sqrt(share * (1 - share) / questions)


def of(known: Mapping[str, Any], sampled: bool = False) -> Iterator[str]:
    """known: as much of nasd.contract.protocol.Prepared as is known. sampled: only the beginnings
    of texts were looked at, which may differ from the whole."""
    seen = "the beginnings of " if sampled else ""
    for key, what in (
        ("mlm_unknown", f"{seen}the corpora"),
        ("qa_unknown", "the contexts"),
        ("labelled_unknown", "the labelled texts"),
    ):
        share = known.get(key)
        if share is not None and share >= MUCH_UNKNOWN:
            yield (
                f"{100 * share:.1f} % of the tokens in {what} are [UNK]: the seed's vocabulary has"
                " no pieces for what stands there"
            )
    whole, kept, lost = (known.get(key) for key in ("seed_parameters", "parameters", "words_lost"))
    if whole and kept and lost is not None:
        yield (
            f"the baseline's encoder has {100 * kept / whole:.1f} % of the seed's"
            f" {whole / 1e6:.1f} M parameters ({BYTES * kept / 1e6:.1f} of"
            f" {BYTES * whole / 1e6:.1f} MB in float32), as seed_model.vocabulary says:"
            f" {100 * lost:.1f} % of the training texts' words fall apart into more pieces"
        )
    skipped = known.get("qa_skipped")
    if skipped:
        yield (
            f"{skipped:,} faulty questions are left out, as data.qa.skip_faulty says"
            if skipped > 1
            else "1 faulty question is left out, as data.qa.skip_faulty says"
        )
    each = [one["labelled_test"] for one in (known.get("labelled_tasks") or {}).values()]
    tests = min(each, default=known.get("labelled_test"))
    if tests and margin(tests) > TOO_WIDE:
        yield (
            f"{tests:,} test example{'' if tests == 1 else 's'} are too few to tell candidates"
            f" apart: chance alone moves a share of 50 % by ± {margin(tests):.0f} points"
        )
    tests = known.get("qa_test_questions")
    if tests and margin(tests) > TOO_WIDE:
        yield (
            f"{tests:,} test question{'' if tests == 1 else 's'} are too few to tell candidates"
            f" apart: chance alone moves an EM of 50 % by ± {margin(tests):.0f} points"
        )
