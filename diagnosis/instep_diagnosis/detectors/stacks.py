"""What ranks' stacks show: their own code, a collective, something that may rightly take long; and where they part."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from instep_agent.wire import StackFrame, ThreadStack

_LIBRARY = re.compile(
    r"site-packages/|dist-packages/|/lib/python\d|^<frozen|^<string>|^python\d|"
    r"/instep_(?!trainer/(?:train|inject)/)[a-z]+/"
)
# The bundled trainer, and a drill inside it, are the script; the rest of Instep is a library to it.
_COLLECTIVE = re.compile(r"torch/distributed/(?!checkpoint|run\.py|launcher|elastic)")
_MAY_WAIT = re.compile(r"/torch/|/instep_[a-z]+/")
# Only frames that are on the stack while compiling: eval_frame.py also stands under every compiled call.
_BENIGN_FILES = (
    ("saving a checkpoint", re.compile(r"torch/(serialization\.py|distributed/checkpoint/)|safetensors/")),
    ("waiting for its data loader", re.compile(r"torch/utils/data/dataloader\.py")),
    (
        "compiling",
        re.compile(
            r"torch/_dynamo/(convert_frame|symbolic_convert|output_graph)\.py|triton/compiler/|"
            r"torch/_inductor/(async_compile|codecache|graph|scheduler|codegen/)|torch/utils/cpp_extension\.py"
        ),
    ),
)
_BENIGN_FUNCTIONS = (
    ("saving a checkpoint", re.compile(r"^_?(save|write)_(the_)?(checkpoint|state|model|snapshot)")),
    ("evaluating", re.compile(r"^_?(evaluate|evaluation|validate|validation|eval_(loop|epoch|model))")),
)


def main_thread(stacks: Sequence[ThreadStack]) -> ThreadStack | None:
    """The main thread, or the only one there is."""
    for stack in stacks:
        if stack.is_main:
            return stack
    return stacks[0] if len(stacks) == 1 else None


def user_frame(stack: ThreadStack) -> StackFrame | None:
    """The innermost frame of the script itself: neither of a library nor of the standard library.

    >>> frames = (StackFrame(function="wait", file="/usr/lib/python3.11/threading.py", line=3),
    ...           StackFrame(function="load_batch", file="/srv/train.py", line=88))
    >>> user_frame(ThreadStack(name="MainThread", is_main=True, is_active=True, owns_gil=False, frames=frames)).line
    88
    """
    return next((frame for frame in stack.frames if not _LIBRARY.search(frame.file)), None)


def is_in_collective(stack: ThreadStack) -> bool:
    """Whether the innermost frames, above the first of the script's own, call torch.distributed."""
    for frame in stack.frames:
        if not _LIBRARY.search(frame.file):
            return False
        if _COLLECTIVE.search(frame.file):
            return True
    return False


def is_outside_torch(stack: ThreadStack) -> bool:
    """Whether nothing of torch or of Instep stands above the script's own innermost frame: it can sit in no
    collective.

    >>> frames = (StackFrame(function="sleep", file="/srv/train.py", line=3),)
    >>> is_outside_torch(ThreadStack(name="", is_main=True, is_active=False, owns_gil=False, frames=frames))
    True
    """
    for frame in stack.frames:
        if not _LIBRARY.search(frame.file):
            return True
        if _MAY_WAIT.search(frame.file):
            return False
    return False


def benign_reason(stack: ThreadStack) -> str:
    """What the rank does that may rightly take long, or nothing."""
    for frame in stack.frames:
        for words, pattern in _BENIGN_FILES:
            if pattern.search(frame.file):
                return words
        for words, pattern in _BENIGN_FUNCTIONS:
            if pattern.search(frame.function):
                return words
    return ""


def in_words(frame: StackFrame) -> str:
    """A frame as a person says it: `train.py:88 in load_batch`."""
    return f"{frame.file.rsplit('/', 1)[-1]}:{frame.line} in {frame.function}"


@dataclass(frozen=True, slots=True)
class StackNode:
    """One frame that some ranks have in common, with all that came before it, and where they go from there."""

    frame: StackFrame | None
    """None for the root, which all ranks have in common."""
    ranks: tuple[int, ...]
    children: tuple[StackNode, ...] = ()
    """Most ranks first. Ranks in none of them end here."""

    @property
    def ending(self) -> tuple[int, ...]:
        """Ranks whose stack ends at this frame."""
        gone_on = {rank for child in self.children for rank in child.ranks}
        return tuple(rank for rank in self.ranks if rank not in gone_on)


def merge_stacks(stacks: Mapping[int, ThreadStack], *, is_innermost_first: bool = False) -> StackNode:
    """Stacks of many ranks as one tree, by frame: from the outermost frame, where ranks of one script have most in
    common, or from the innermost, which tells what they sit in.

    >>> at = lambda *lines: ThreadStack(name="", is_main=True, is_active=True, owns_gil=False, frames=tuple(
    ...     StackFrame(function="f", file="a.py", line=line) for line in lines))
    >>> outermost = merge_stacks({0: at(2, 1), 1: at(3, 1), 2: at(2, 1)}).children[0]
    >>> [(node.ranks, node.frame.line) for node in outermost.children]
    [((0, 2), 2), ((1,), 3)]
    """
    step = 1 if is_innermost_first else -1
    return _merged(None, {rank: stack.frames[::step] for rank, stack in sorted(stacks.items())})


def _merged(frame: StackFrame | None, frames: Mapping[int, Sequence[StackFrame]]) -> StackNode:
    root = _Growing(frame)
    for rank, path in frames.items():
        node = root
        node.ranks.append(rank)
        for step in path:
            node = node.children.setdefault((step.file, step.function, step.line), _Growing(step))
            node.ranks.append(rank)
    return root.frozen()


class _Growing:
    """A node while the stacks are laid into it."""

    def __init__(self, frame: StackFrame | None) -> None:
        self.frame = frame
        self.ranks: list[int] = []
        self.children: dict[tuple[str, str, int], _Growing] = {}

    def frozen(self) -> StackNode:
        """The node with all below it; without recursion, as a stack may be deeper than ours."""
        order: list[_Growing] = [self]
        for node in order:
            order.extend(node.children.values())
        done: dict[int, StackNode] = {}
        for node in reversed(order):
            children = sorted(
                (done[id(child)] for child in node.children.values()), key=lambda c: (-len(c.ranks), c.ranks)
            )
            done[id(node)] = StackNode(node.frame, tuple(node.ranks), tuple(children))
        return done[id(self)]


def stack_tree_lines(tree: StackNode) -> list[str]:
    """A merged tree as text: one line a frame, its ranks in front, moved in by one where the stacks part.

    Frames that a side has for itself follow its first, so that both sides of a part stand under each other.
    """
    lines = []
    pending = [(child, 0) for child in reversed(tree.children)]
    while pending:
        node, depth = pending.pop()
        lines.append((rank_ranges(node.ranks), depth, in_words(node.frame) if node.frame else ""))
        is_part = len(node.children) > 1 or bool(node.children and node.ending)
        if node.children and node.ending:
            lines.append((rank_ranges(node.ending), depth + 1, "(ends here)"))
        pending.extend((child, depth + is_part) for child in reversed(node.children))
    width = max((len(ranks) for ranks, _, _ in lines), default=0)
    return [f"{ranks:<{width}}  {'  ' * depth}{words}" for ranks, depth, words in lines]


def odd_ranks(tree: StackNode) -> tuple[tuple[int, ...], str]:
    """The fewest ranks that part from the most others, with a sentence; nobody, where no side is smaller. Of several as
    small as one another all are named.

    >>> one = ThreadStack(name="", is_main=True, is_active=True, owns_gil=False,
    ...                   frames=(StackFrame(function="wait", file="dist.py", line=1),))
    >>> odd_ranks(merge_stacks({0: one, 1: one}))
    ((), '')
    """
    best: tuple[int, int, tuple[int, ...], str] | None = None
    for node in _nodes(tree):
        sides = [*((child.ranks, in_words(child.frame)) for child in node.children if child.frame)]
        sides += [(node.ending, "its end")] if node.ending and node.children else []
        if len(sides) < 2:
            continue
        least = min(len(ranks) for ranks, _ in sides)
        smallest = [side for side in sides if len(side[0]) == least]
        few, where = tuple(sorted(rank for ranks, _ in smallest for rank in ranks)), "; ".join(w for _, w in smallest)
        rest = tuple(rank for rank in node.ranks if rank not in set(few))
        if len(few) >= max(len(ranks) for ranks, _ in sides):
            continue
        at = f" after {in_words(node.frame)}" if node.frame else ""
        who = f"Rank {few[0]} is alone" if len(few) == 1 else f"Ranks {rank_ranges(few)} are by themselves"
        words = f"{who}: {where}, where ranks {rank_ranges(rest)} go another way{at}."
        if best is None or (len(few), -len(rest)) < best[:2]:
            best = (len(few), -len(rest), few, words)
    return ((), "") if best is None else best[2:]


def _nodes(tree: StackNode) -> Iterator[StackNode]:
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(node.children)


def rank_ranges(ranks: Sequence[int]) -> str:
    """Ranks in the shortest form.

    >>> rank_ranges((0, 1, 2, 3, 5)), rank_ranges(())
    ('0-3,5', '')
    """
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
