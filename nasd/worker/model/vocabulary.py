"""A seed with fewer words: which tokens of its vocabulary stay, and tokenizer and model with those.

Of a small encoder the word embeddings are most of its parameters, and a task's texts use few of
them. Kept rows are copied as they are, so what is made of kept tokens alone gives the same outputs;
every other word falls apart into pieces of its own, down to single characters, which all stay: a
WordPiece tokenizer takes the longest piece that it has, so a word of kept pieces is cut as before.
"""

import copy
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nasd.contract.errors import NasdError
from nasd.worker.model import factors, phenotype
from nasd.worker.model.embeddings import Embeddings

KEY = "seed_model.vocabulary"
KIND = "WordPiece"
MOST_LOST = 0.5  # of the words of a source in one script that may fall apart
LEAST_SHARE, LEAST_WORDS = 0.01, 50  # of a source that a script's words must be, to be looked at
WORDS = "embeddings.word.weight"

Counts = Mapping[str, NDArray[np.int64]]  # of each token, by the source of the text


def numbers(tokenizer: Any) -> int:
    """How many a table for its tokens has: up to the largest number. Not len(tokenizer): numbers
    that nobody has are no fault, as where a line stands twice in a vocab.txt
    (findings/tokenizers-counts-what-it-should-number.sh)."""
    known: dict[str, int] = tokenizer.get_vocab()
    return 1 + max(known.values())


def check(tokenizer: Any, count: int) -> None:
    """Raises NasdError where the tokenizer cannot keep so many tokens, and no others."""
    kind = _told(tokenizer)["model"]["type"]
    if kind != KIND:
        raise NasdError(
            f"{KEY}: the seed's tokenizer is of the kind {kind}, and only those of the kind {KIND}"
            " can be trimmed: leave the key out, or take another seed"
        )
    least = int(_needed(tokenizer).sum())
    has = len(tokenizer.get_vocab())
    if not least <= count <= has:
        what = "more than it has" if count > has else "fewer than it needs"
        raise NasdError(
            f"{KEY}: {count:,} tokens are {what}, as the seed's tokenizer knows"
            f" {has:,}, and {least:,} are special or single characters: take a number"
            " between the two"
        )


def chosen(tokenizer: Any, count: int, counts: Counts) -> NDArray[np.int64]:
    """The ids of the tokens that stay, in their order.

    What must stay does; the others by how often they stand in the texts, where each source counts
    alike. The vocabulary's own order counts as one more source, by Zipf's law, as far as it goes
    with these: BERT's is sorted by how common a word is, and so a word that by chance stands in no
    training text may stay all the same. Raises NasdError where `check` does, or where texts in
    one script, or of one source, would fall apart.
    """
    check(tokenizer, count)
    stays = _needed(tokenizer)
    often = np.sum([_shares(one) for one in counts.values()], axis=0)
    common = np.where(_readable(tokenizer), 1.0 / np.arange(1, numbers(tokenizer) + 1), 0.0)
    often = often + _agreement(often, common) * _shares(common)
    often[[not name for name in _names(tokenizer)]] = -np.inf
    order = np.argsort(-np.where(stays, np.inf, often), kind="stable")
    stays[order[:count]] = True
    _check_lost(tokenizer, stays, counts)
    kept: NDArray[np.int64] = np.flatnonzero(stays)
    return kept


def lost(tokenizer: Any, kept: NDArray[np.int64], counts: Counts) -> float:
    """The share of the texts' words that fall apart into more pieces than before, at most."""
    gone = np.ones(numbers(tokenizer), dtype=bool)
    gone[kept] = False
    begins = ~_continues(tokenizer)
    words = sum(int(one[begins].sum()) for one in counts.values())
    return sum(int(one[gone].sum()) for one in counts.values()) / max(1, words)


def trimmed_tokenizer(tokenizer: Any, kept: NDArray[np.int64]) -> Any:
    """The same tokenizer with these tokens alone, numbered in their order."""
    from tokenizers import Tokenizer

    names = _names(tokenizer)
    number = {names[one]: place for place, one in enumerate(kept.tolist())}
    told = _told(tokenizer)
    told["model"]["vocab"] = number
    for added in told["added_tokens"]:
        added["id"] = number[added["content"]]
    if told["padding"] is not None:
        told["padding"]["pad_id"] = number[told["padding"]["pad_token"]]
    _renumber(told["post_processor"], number)
    made = copy.deepcopy(tokenizer)
    made._tokenizer = Tokenizer.from_str(json.dumps(told))
    return made


def trimmed_model(model: phenotype.Model, kept: NDArray[np.int64]) -> phenotype.Model:
    """The same model for that tokenizer: the kept rows, as they are."""
    arch = model.architecture
    pad = int(np.searchsorted(kept, arch.pad_token_id))
    separator = arch.separator
    if separator is not None:
        separator = int(np.searchsorted(kept, separator))
    rows = torch.from_numpy(kept)
    assert arch.frequent < len(kept), "preflight has refused it"
    smaller = replace(arch, vocab_size=len(kept), pad_token_id=pad, separator=separator)
    made = phenotype.empty(type(model), smaller)
    state = model.state_dict()
    if arch.frequent:
        state |= _trimmed_tables(model.encoder.embeddings, rows)
    else:
        state[f"encoder.{WORDS}"] = state[f"encoder.{WORDS}"][rows]
    if "head.bias" in state:
        state["head.bias"] = state["head.bias"][rows]
    made.load_state_dict(state)
    return made


def _trimmed_tables(embeddings: Embeddings, kept: Tensor) -> dict[str, Tensor]:
    """Both tables of the kept words: the frequent ones', which others fill up, and the others'."""
    assert embeddings.frequent is not None, "there are frequent words"
    often = embeddings.frequent.num_embeddings
    rows = embeddings.row[kept]
    order = rows.argsort()  # frequent ones first
    others = rows[order[often:]].long() - often
    row = torch.empty_like(rows)
    row[order] = torch.arange(len(order), dtype=row.dtype)
    found = {
        "frequent.weight": factors.full(embeddings)[kept[order[:often]]],
        "word.weight": embeddings.word.weight[others],
        "row": row,
    }
    return {f"encoder.embeddings.{name}": one.detach() for name, one in found.items()}


# -- which may go --------------------------------------------------------------------------------


def _needed(tokenizer: Any) -> NDArray[np.bool_]:
    """[tokens] True for special tokens, single characters, and what holds a character that the
    vocabulary has no piece of its own for, at the place where it stands."""
    vocabulary = tokenizer.get_vocab()
    special = {str(one) for one in tokenizer.added_tokens_decoder.values()}
    prefix = _prefix(tokenizer)
    needed = np.zeros(numbers(tokenizer), dtype=bool)
    for token, number in vocabulary.items():
        text, continues = _text(token, prefix)
        pieces = (prefix + one if place or continues else one for place, one in enumerate(text))
        needed[number] = (
            token in special or len(text) == 1 or any(one not in vocabulary for one in pieces)
        )
    return needed


def _readable(tokenizer: Any) -> NDArray[np.bool_]:
    """[tokens] False for those that no text gives, as BERT's [unused7], which is cut first."""
    cut = tokenizer.backend_tokenizer.pre_tokenizer
    prefix = _prefix(tokenizer)
    texts = [_text(name, prefix)[0] for name in _names(tokenizer)]
    one = (bool(text) and (cut is None or len(cut.pre_tokenize_str(text)) == 1) for text in texts)
    return np.fromiter(one, dtype=bool)


def _shares(counts: NDArray[Any]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = counts / max(counts.sum(), 1e-12)
    return shares


def _agreement(often: NDArray[np.float64], common: NDArray[np.float64]) -> float:
    """How far two orders of the tokens that occur are one, from 0 to 1 (Spearman's correlation)."""
    seen = (often > 0) & (common > 0)
    ranks = [np.argsort(np.argsort(one[seen])) for one in (often, common)]
    if seen.sum() < 2:
        return 0.0
    return max(0.0, float(np.corrcoef(ranks[0], ranks[1])[0, 1]))


def _check_lost(tokenizer: Any, stays: NDArray[np.bool_], counts: Counts) -> None:
    """A language shows in its letters, or in being another source's: where most words of either
    fall apart, what the seed knows of it is gone."""
    begins, scripts = ~_continues(tokenizer), _scripts(tokenizer)
    for source, one in counts.items():
        words = int(one[begins].sum())
        for script in sorted(set(scripts) - {""}):
            mine = np.array([other == script for other in scripts])
            its = int(one[begins & mine].sum())
            share = int(one[~stays & mine].sum()) / max(1, its)
            if its >= max(LEAST_WORDS, LEAST_SHARE * words) and share > MOST_LOST:
                raise NasdError(
                    f"{KEY}: with {int(stays.sum()):,} tokens {100 * share:.0f} % of the words in"
                    f" {script.capitalize()} letters in {source} would fall apart into pieces: take"
                    " more tokens, or leave that text out"
                )


def _scripts(tokenizer: Any) -> list[str]:
    """Of each token the script of its first letter, as Unicode names it; "" without letters."""
    prefix = _prefix(tokenizer)
    found = []
    for name in _names(tokenizer):
        letter = next((one for one in _text(name, prefix)[0] if one.isalpha()), "")
        found.append(unicodedata.name(letter, "").partition(" ")[0] if letter else "")
    return found


def _continues(tokenizer: Any) -> NDArray[np.bool_]:
    """[tokens] True for what stands within a word."""
    prefix = _prefix(tokenizer)
    return np.array([_text(name, prefix)[1] for name in _names(tokenizer)])


def _names(tokenizer: Any) -> list[str]:
    """[tokens] "" for a number that nobody has. As the vocabulary has them: asked by its number, an
    added token with capitals is told as a tokenizer of lower case sees it
    (findings/tokenizers-tells-an-added-token-in-lower-case.sh)."""
    found = [""] * numbers(tokenizer)
    for name, number in tokenizer.get_vocab().items():
        found[number] = name
    return found


def _text(token: str, prefix: str) -> tuple[str, bool]:
    """What the token stands for, and whether it goes on with a word."""
    continues = token.startswith(prefix) and len(token) > len(prefix)
    return (token.removeprefix(prefix) if continues else token), continues


def _prefix(tokenizer: Any) -> str:
    prefix: str = tokenizer.backend_tokenizer.model.continuing_subword_prefix
    return prefix


def _told(tokenizer: Any) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return told


def _renumber(processor: Any, number: Mapping[str, int]) -> None:
    """What puts the special tokens in, of any of the tokenizers library's kinds, in place."""
    if processor is None:
        return
    for one in processor.get("processors", ()):
        _renumber(one, number)
    specials = processor.get("special_tokens", {})
    for one in specials.values() if isinstance(specials, dict) else ():
        one["ids"] = [number[name] for name in one["tokens"]]
    for name in ("sep", "cls"):
        if name in processor:
            processor[name] = [processor[name][0], number[processor[name][0]]]
