"""`instep diagnose bundle FILE.zip`: an exported evidence bundle, judged again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from instep_diagnosis.bundles import diagnose
from instep_diagnosis.codec import encode
from instep_diagnosis.exit_status import FINE, FOUND
from instep_diagnosis.files.bundle import read_bundle
from instep_diagnosis.verdict import Verdict


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = commands.add_parser(
        "bundle",
        help="diagnose an exported evidence bundle again",
        description="The verdicts that follow from the evidence in a bundle, and whether they are those it "
        "was packed with.",
    )
    parser.add_argument("file", metavar="FILE.zip", help="what the server exports of an incident")
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the bundle's verdicts. Raises `EvidenceError` where it cannot be read."""
    bundle, packed = read_bundle(Path(options.file))
    verdicts = diagnose(bundle)
    if options.json:
        document = {"verdicts": verdicts, "is_same_as_packed": verdicts == packed}
        print(encode(document).decode())
    else:
        print("\n\n".join(verdict_text(verdict) for verdict in verdicts) or "Nothing is wrong in this evidence.")
        if verdicts != packed:
            print("This differs from the verdict the bundle was packed with (another version?).", file=sys.stderr)
    return FOUND if verdicts else FINE


def verdict_text(verdict: Verdict) -> str:
    """A verdict for a person: the sentence, who is blamed, and why."""
    lines = [f"{verdict.kind} ({verdict.certainty}): {verdict.summary}"]
    for suspect in verdict.suspects:
        who = suspect.node if suspect.rank is None else f"rank {suspect.rank} on {suspect.node}"
        lines.append(f"  suspect: {who}, {suspect.cause}, {suspect.confidence:.2f} sure")
    lines.append(f"  owner: {verdict.owner}; node at fault: {'yes' if verdict.is_node_at_fault else 'no evidence'}")
    lines += [f"  - {item.text}" for item in verdict.evidence]
    return "\n".join(lines)
