"""The status as lines, for a terminal of any width and height: what stands where.

Which blocks there are, and how large, follows from width, height and the number of slots and
candidates alone, so nothing jumps from one look to the next.
"""

from dataclasses import dataclass

from rich.text import Text

from nasd.views.status import blocks, table
from nasd.views.status.facts import Facts
from nasd.views.status.header import header
from nasd.views.status.text import GAP, beside, fitting, line

WIDE = 116  # columns, from which on slots and front stand beside the candidates
NARROW = 60  # below which there is room for the essentials alone
BAND = (6, 12)  # lines of slots and front above the candidates
EVENTS = 10  # of a view as high as it needs


def view(facts: Facts, width: int, height: int | None = None) -> list[Text]:
    """No line is wider, and there are no more of them. height: None shows every candidate."""
    head = header(facts, width, height)
    if height is not None and len(head) >= height - 1:
        found = head
    elif width >= WIDE:
        found = _wide(facts, head, width, height)
    else:
        found = _high(facts, head, width, height)
    return [fitting(width, one) for one in found[:height]]


def _wide(facts: Facts, head: list[Text], width: int, height: int | None) -> list[Text]:
    side = min(60, max(42, width * 3 // 10))
    main = width - side - GAP
    room = None if height is None else height - len(head) - 1
    slots = blocks.slots(facts, side, None if room is None else max(2, room // 2))
    left = table.candidates(facts, main, None if room is None else max(1, room - min(8, room // 4)))
    events = EVENTS if room is None else room - len(left) - 1
    left += [line(""), *blocks.events(facts, main, events)] if events > 0 else []
    free = 20 if room is None else min(24, room - len(slots) - 1)
    right = [*slots, line(""), *blocks.front(facts, side, free)]
    for block in (blocks.ahead, blocks.history):
        left_over = 8 if room is None else min(9, room - len(right) - 1)
        if found := block(facts, side, left_over):
            right += [line(""), *found]
    return [*head, line(""), *beside(left, right, main)]


def _high(facts: Facts, head: list[Text], width: int, height: int | None) -> list[Text]:
    rows, slots = table.height_of(facts), len(facts.slots) + 1
    if height is None:
        share = _Share(max(slots, BAND[1]), rows, EVENTS, gaps=3)
    else:
        share = _Share.of(height - len(head), rows, slots, width)
    found = list(head)
    gaps = share.gaps
    for block in (
        _band(facts, width, share.band),
        table.candidates(facts, width, share.table),
        blocks.events(facts, width, share.events),
    ):
        if gaps and block:
            found.append(line(""))
            gaps -= 1
        found += block
    return found


@dataclass(frozen=True)
class _Share:
    """Lines that each block gets, and how many of them have an empty one before them."""

    band: int
    table: int
    events: int
    gaps: int

    @classmethod
    def of(cls, room: int, rows: int, slots: int, width: int) -> "_Share":
        """rows, slots: that all candidates and all slots would take."""
        low, high = BAND
        band = 0
        if room >= 14 and width >= NARROW:
            band = min(room // 2, max(min(slots, high), min(high, max(low, room - rows - 6))))
        elif room >= 9:
            band = min(slots, room // 4)
        events = 0 if room < 14 else 2  # at least
        table = max(0, min(rows, room - band - events))
        left = room - band - table
        gaps = min(3, max(0, left - events - 2))
        return cls(band, table, left - gaps, gaps)


def _band(facts: Facts, width: int, height: int) -> list[Text]:
    """The slots, and the front beside them where there is room for it."""
    if not height:
        return []
    if width < NARROW or height < BAND[0]:
        return blocks.slots(facts, width, height)
    left = min(width // 2 + 4, blocks.width_of_slots(facts))
    front = blocks.front(facts, width - left - GAP, height)
    return beside(blocks.slots(facts, left, height), front, left)
