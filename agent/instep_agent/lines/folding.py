"""Lines that say the same thing are sent once and counted: what a broken part logs 800,000 times is a few facts."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from instep_agent.lines.kernel import family_of, is_numbered, meaning_of, pid_of

WINDOW_SECONDS = 60.0
"""Lines of equal meaning within one window are counted; its end tells how many there were."""
FAMILIES_MAX = 256
VARIANTS_MAX = 16
"""Of one family; further different lines of it are counted, not sent."""
SENT_MAX = 512
"""Lines sent in one window; numbered faults of drivers may be as many again, the first of each family."""
TOLD_MAX = 32
"""Of the lines that came most often, the window's end tells each with its number."""
TEXT_CHARACTERS_MAX = 200
PIDS_MAX = 8


@dataclass(slots=True)
class _Line:
    """One line that was sent: how often it came again, and which processes it then named."""

    text: bytes
    count: int = 0
    pids: set[int] = field(default_factory=set)


class Fold:
    """Decides of each line whether it is sent, and counts exactly those that are not."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._lines: dict[bytes, _Line] = {}
        self._families: OrderedDict[bytes, list[bytes]] = OrderedDict()
        self._until_ns = 0
        self._sent = 0
        self._folded = 0

    def is_sent(self, line: bytes, now_ns: int) -> bool:
        """Whether this line says something that was not said in this window; a repeat is counted."""
        meaning = meaning_of(line)
        known = self._lines.get(meaning)
        if known is None:
            self._until_ns = self._until_ns or now_ns + int(WINDOW_SECONDS * 1e9)
            is_sent = self._is_new(line, meaning)
            self._folded += not is_sent
            return is_sent
        self._folded += 1
        known.count += 1
        if meaning is not line and len(known.pids) < PIDS_MAX and (pid := pid_of(line)):
            known.pids.add(pid)
        return False

    def is_over(self, now_ns: int) -> bool:
        """Whether the window has come to its end."""
        return 0 < self._until_ns <= now_ns

    def fields_at_end(self) -> dict[str, str]:
        """Begin a new window; give what the old one counted as an event's fields, empty when nothing came again.

        `count` is all that was not sent; `further` of these are told by no other field.
        """
        counted = sorted((one for one in self._lines.values() if one.count), key=lambda one: -one.count)[:TOLD_MAX]
        fields: dict[str, str] = {}
        if self._folded:
            fields = {"count": str(self._folded), "further": str(self._folded - sum(one.count for one in counted))}
            fields |= {str(number): _told(one) for number, one in enumerate(counted, start=1)}
        self._begin()
        return fields

    def _is_new(self, line: bytes, meaning: bytes) -> bool:
        name = family_of(line)
        is_first = name not in self._families
        family = self._families.setdefault(name, [])
        self._families.move_to_end(name)
        if len(self._families) > FAMILIES_MAX:
            for forgotten in self._families.popitem(last=False)[1]:
                del self._lines[forgotten]
        sent_max = 2 * SENT_MAX if is_first and is_numbered(line) else SENT_MAX
        if len(family) >= VARIANTS_MAX or self._sent >= sent_max:
            return False
        family.append(meaning)
        self._lines[meaning] = _Line(line)
        self._sent += 1
        return True


def _told(line: _Line) -> str:
    pid = pid_of(line.text)
    others = sorted(line.pids - {pid})
    also = f" (also pid {', '.join(map(str, others))})" if others else ""
    return f"{line.count} times{also}: {line.text.decode('utf-8', 'replace')[:TEXT_CHARACTERS_MAX]}"
