"""`instep config show`: what is printed, and what is said when a part cannot describe itself."""

import json
from importlib.metadata import EntryPoint

import pytest
from instep import config_command

ROWS = [
    {
        "key": "interval_seconds",
        "value": 1.0,
        "source": "default",
        "help": "Between two readings.",
        "range": "0.1 to 60",
    },
    {"key": "node", "value": "node-a", "source": "environment INSTEP_NODE_NAME", "help": "This node.", "range": ""},
    {"key": "tokens", "value": None, "source": "agent.toml", "help": "Withheld.", "range": None},
]
ASKED = []


def describe(file):
    ASKED.append(file)
    return ROWS


def refuse(file):
    raise ValueError(f"{file}: interval_seconds = 0 is out of range: 0.1 to 60.")


def lose(file):
    raise FileNotFoundError(2, "No such file or directory", file)


@pytest.fixture(autouse=True)
def _configs(monkeypatch):
    functions = {"agent": describe, "server": refuse, "trainer": lose}
    # Loading by name would import this file a second time, so each point is bound to its function.
    points = [
        type("Point", (), {"name": name, "value": f"part:{name}", "load": lambda self, f=f: f})()
        for name, f in functions.items()
    ]
    points += [EntryPoint("absent", "a_package_nobody_has:describe", "instep.configs")]
    points += [EntryPoint("mute", "json:describe", "instep.configs")]
    monkeypatch.setattr(config_command, "entry_points", lambda group: points)
    ASKED.clear()


def test_prints_every_setting_with_its_source(capsys):
    assert config_command.main(["show", "agent"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines() == [
        "KEY               VALUE     SOURCE                        RANGE",
        "interval_seconds  1.0       default                       0.1 to 60",
        'node              "node-a"  environment INSTEP_NODE_NAME',
        "tokens            null      agent.toml",
    ]


def test_prints_the_same_rows_as_json(capsys):
    assert config_command.main(["show", "agent", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ROWS


def test_hands_the_file_on(tmp_path):
    config_command.main(["show", "agent", "--file", "agent.toml"])
    config_command.main(["show", "agent"])
    assert ASKED == ["agent.toml", None]


@pytest.mark.parametrize(("name", "sentence"), [("server", "out of range"), ("trainer", "No such file")])
def test_a_file_that_cannot_be_used_gets_one_sentence(capsys, name, sentence):
    assert config_command.main(["show", name, "--file", "bad.toml"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert sentence in said
    assert "bad.toml" in said


@pytest.mark.parametrize("name", ["absent", "mute"])
def test_a_part_that_cannot_describe_itself_gets_one_sentence(capsys, name):
    assert config_command.main(["show", name]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"cannot describe the {name}" in said


@pytest.mark.parametrize("arguments", [[], ["show"], ["show", "nobody"], ["change", "agent"]])
def test_used_wrongly(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        config_command.main(arguments)
    assert stopped.value.code == 2
