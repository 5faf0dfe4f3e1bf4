"""What can go wrong in diagnosis.

DiagnosisError
├── EvidenceError      the evidence cannot be read; trying again does not help
└── CatalogueError     a catalogue file breaks its rules; trying again does not help
"""


class DiagnosisError(Exception):
    """Any failure of this part."""


class EvidenceError(DiagnosisError):
    """A bundle or a message does not hold what it should. The message says what, where and what to do."""


class CatalogueError(DiagnosisError, ValueError):
    """A catalogue does not hold what it should. The message says which file and row, and what to do."""


def reason_of(error: Exception) -> str:
    """Why a file cannot be read or written, in words without its name.

    >>> reason_of(FileNotFoundError(2, "No such file or directory", "a.zip"))
    'No such file or directory'
    """
    return getattr(error, "strerror", None) or str(error) or "it ends early"
