"""What a rank's stacks show: its own code, a collective, or something that may rightly take long."""

from __future__ import annotations

import re
from collections.abc import Sequence

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
