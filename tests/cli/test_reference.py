"""The page of the command line: sub-commands are found, and a verb without help is not passed over."""

import pytest
from instep import reference


def test_sub_commands_are_listed_below_their_verb(monkeypatch):
    printed = {
        ("plans",): "usage: instep plans [-h] [--format {text,json}]\n                    {list,show} ...\n\nPlans.",
        ("plans", "list"): "usage: instep plans list [-h]\n\nPrint them.",
        ("plans", "show"): "usage: instep plans show [-h] {all,last}\n\nPrint one.",
    }
    monkeypatch.setattr(reference, "help_text", lambda words: printed[words])
    assert [words for words, _ in reference.helps(("plans",))] == [("plans",), ("plans", "list"), ("plans", "show")]


def test_the_help_of_an_installed_verb_is_the_printed_one():
    assert reference.help_text(("config", "show")).startswith("usage: instep config show [-h]")


def test_a_verb_that_cannot_print_its_help_is_named():
    with pytest.raises(RuntimeError, match="`instep no-such-verb --help` failed with exit status 2"):
        reference.help_text(("no-such-verb",))
