"""Publishing to a server that speaks Grafana's API: twice is once, a clash is told, each refusal is one sentence."""

import copy
import socket

import pytest
from instep_dashboards.cli import main
from instep_dashboards.generated import BOARDS
from instep_dashboards.panels import as_json

from tests.dashboards.grafana_stand_in import TOKEN, grafana

UIDS = [board.uid for board in BOARDS]
TITLES = [board.title for board in BOARDS]


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


def run(url, token, *more):
    return main(["publish", "--url", url, "--token-file", str(token), *more])


def test_dashboards_come_into_a_folder_of_their_own(token, capsys):
    with grafana() as there:
        assert run(there.url, token, "--message", "after the upgrade") == 0
        assert [(folder["title"], folder["uid"]) for folder in there.folders] == [("Instep", "instep")]
        assert list(there.dashboards) == UIDS
        for board in BOARDS:
            kept = there.dashboards[board.uid]
            content = {name: value for name, value in kept["dashboard"].items() if name not in ("id", "version")}
            assert content == as_json(board, "docs")
            assert (kept["folderUid"], kept["messages"]) == ("instep", ["after the upgrade"])
    said = capsys.readouterr().out.splitlines()
    assert said == ["folder 'Instep': created", *(f"dashboard {title!r}: created" for title in TITLES)]


def test_publishing_twice_writes_once(token, capsys):
    with grafana() as there:
        assert run(there.url, token) == 0
        capsys.readouterr()
        there.requests.clear()
        assert run(there.url, token) == 0
        assert there.writes == []
        assert [kept["dashboard"]["version"] for kept in there.dashboards.values()] == [1, 1]
    assert capsys.readouterr().out.splitlines() == [
        "folder 'Instep': unchanged",
        *(f"dashboard {title!r}: unchanged" for title in TITLES),
    ]


def test_what_somebody_changed_in_grafana_is_brought_back(token, capsys):
    with grafana() as there:
        run(there.url, token)
        there.dashboards[UIDS[1]]["dashboard"]["title"] = "My job"
        there.dashboards[UIDS[1]]["dashboard"]["version"] = 7
        capsys.readouterr()
        assert run(there.url, token) == 0
        assert there.dashboards[UIDS[1]]["dashboard"]["title"] == TITLES[1]
        assert there.dashboards[UIDS[1]]["dashboard"]["version"] == 8
        assert there.dashboards[UIDS[0]]["dashboard"]["version"] == 1
    assert f"dashboard {TITLES[1]!r}: updated" in capsys.readouterr().out


def test_a_dashboard_in_another_folder_is_moved(token):
    with grafana() as there:
        run(there.url, token)
        assert run(there.url, token, "--folder", "GPU cluster") == 0
        assert there.folders[1]["uid"] == "gpu-cluster"
        assert {kept["folderUid"] for kept in there.dashboards.values()} == {"gpu-cluster"}


def test_a_folder_of_that_title_is_used_whatever_its_uid(token):
    with grafana() as there:
        there.folders.append({"id": 1, "uid": "f3k9", "title": "Instep"})
        assert run(there.url, token) == 0
        assert len(there.folders) == 1
        assert {kept["folderUid"] for kept in there.dashboards.values()} == {"f3k9"}


def test_a_dry_run_changes_nothing(token, capsys):
    with grafana() as there:
        assert run(there.url, token, "--dry-run") == 0
        assert there.writes == []
        assert capsys.readouterr().out.splitlines() == [
            "folder 'Instep': would be created",
            *(f"dashboard {title!r}: would be created" for title in TITLES),
        ]
        run(there.url, token)
        before = copy.deepcopy(there.dashboards)
        there.dashboards[UIDS[0]]["dashboard"]["refresh"] = "1m"
        capsys.readouterr()
        assert run(there.url, token, "--dry-run") == 0
        assert there.dashboards[UIDS[1]] == before[UIDS[1]]
    said = capsys.readouterr().out
    assert f"dashboard {TITLES[0]!r}: would be updated" in said
    assert f"dashboard {TITLES[1]!r}: unchanged" in said


def test_a_change_at_the_same_moment_is_not_lost(token, capsys):
    with grafana() as there:
        run(there.url, token)
        there.dashboards[UIDS[0]]["dashboard"]["refresh"] = "1m"
        there.change_before_save = True
        assert run(there.url, token) == 3
        assert there.dashboards[UIDS[0]]["dashboard"]["refresh"] == "1m"
        said = capsys.readouterr().err
        assert "412" in said
        assert "publish again, or replace it with --overwrite" in said
        assert run(there.url, token, "--overwrite") == 0
        assert there.dashboards[UIDS[0]]["dashboard"]["refresh"] == "10s"


def test_another_dashboard_of_the_same_name_is_told(token, capsys):
    with grafana() as there:
        there.folders.append({"id": 1, "uid": "instep", "title": "Instep"})
        there.dashboards["mine"] = {
            "dashboard": {"id": 1, "uid": "mine", "title": TITLES[0], "version": 3},
            "folderUid": "instep",
            "messages": [],
        }
        assert run(there.url, token) == 3
        assert "another dashboard of this name is in the folder" in capsys.readouterr().err


def test_a_grafana_below_a_path_is_reached(token):
    with grafana(prefix="/grafana") as there:
        assert run(f"{there.url}/", token) == 0
        assert list(there.dashboards) == UIDS


REFUSALS = {
    401: ({"message": "Invalid API key"}, "it does not know the token"),
    403: ({"message": "You'll need additional permissions"}, "give its service account the role Editor"),
    404: ({"message": "Not found"}, "give the address at which Grafana's own page stands"),
    400: ({"message": "bad request data"}, "bad request data"),
    412: ({"message": "precondition", "status": "plugin-dashboard"}, "it belongs to a plugin"),
    429: ({"message": "slow down"}, "slow down"),
}


@pytest.mark.parametrize("status", REFUSALS)
def test_each_refusal_is_one_sentence(token, capsys, status):
    body, words = REFUSALS[status]
    with grafana() as there:
        there.fail_with = (status, body)
        assert run(there.url, token) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"instep dashboards: Grafana at {there.url} refused to list folders ({status}: ")
    assert words in said
    assert TOKEN not in said
    assert said.count("\n") == 1


def test_a_wrong_token_is_refused_and_not_shown(tmp_path, capsys):
    wrong = tmp_path / "wrong"
    wrong.write_text("glsa_wrong")
    with grafana() as there:
        assert run(there.url, wrong) == 3
    said = capsys.readouterr().err
    assert "(401: Invalid API key); it does not know the token" in said
    assert "glsa_wrong" not in said


def test_a_server_error_says_to_try_again(token, capsys):
    with grafana() as there:
        there.fail_with = (502, "bad gateway")
        assert run(there.url, token) == 3
    assert "(502: bad gateway): look into its log and publish again." in capsys.readouterr().err


def test_a_missing_page_of_another_server_is_no_missing_dashboard(token, capsys):
    with grafana() as there:
        there.folders.append({"id": 1, "uid": "instep", "title": "Instep"})
        answer = there.answer

        def without_dashboards(method, path, *rest):
            return (404, "<html>no such page</html>") if "/dashboards/" in path else answer(method, path, *rest)

        there.answer = without_dashboards
        assert run(there.url, token) == 3
    assert "refused to read dashboard 'instep-fleet' (404" in capsys.readouterr().err


def test_what_is_no_grafana_is_told(token, capsys):
    with grafana() as there:
        there.fail_with = (200, "<html>welcome</html>")
        assert run(there.url, token) == 3
    assert "does not speak as Grafana does (no JSON)" in capsys.readouterr().err


def test_nobody_listening_is_told(token, capsys):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        assert run(url, token) == 3
    assert capsys.readouterr().err == (
        f"instep dashboards: Cannot reach Grafana at {url} (Connection refused): start it, or give its address with "
        "--url.\n"
    )


@pytest.mark.parametrize(
    "url", ["grafana.example.org", "ftp://grafana", "http://", "http://host:99999", "http://a:b@host", "http://h/?q=1"]
)
def test_an_address_that_cannot_be_is_used_wrongly(token, capsys, url):
    assert run(url, token) == 2
    assert "--url" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "two words", "t\u00f6ken"])
def test_a_file_without_one_token_is_used_wrongly(tmp_path, capsys, text):
    path = tmp_path / "token"
    path.write_text(text)
    assert run("http://127.0.0.1:1", path) == 2
    assert "does not hold one token" in capsys.readouterr().err
    assert main(["publish", "--url", "http://127.0.0.1:1", "--token-file", str(tmp_path / "none")]) == 2
    assert "Cannot read the token" in capsys.readouterr().err
