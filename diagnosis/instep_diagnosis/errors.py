"""What can go wrong in diagnosis.

DiagnosisError
└── EvidenceError      the evidence cannot be read; trying again does not help
"""


class DiagnosisError(Exception):
    """Any failure of this part."""


class EvidenceError(DiagnosisError):
    """A bundle or a message does not hold what it should. The message says what, where and what to do."""
