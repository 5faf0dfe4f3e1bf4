"""A benchmark that is killed leaves its folder to the next one; nobody else's folder is touched."""

import os
import signal
import subprocess
import sys

import pytest
from instep_agent.benchmarks.scratch import OWNER, PREFIX, remove_left_behind, scratch_folder

PROGRAM = """
import sys, time
from instep_agent.benchmarks.scratch import scratch_folder
with scratch_folder(sys.argv[1]) as folder:
    (folder / "deep").mkdir()
    (folder / "deep/file").touch()
    (folder / "away").symlink_to(sys.argv[1])
    print(folder.name, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def benchmark(tmp_path):
    """A process with a folder, and the folder's name."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    yield process, process.stdout.readline().strip()
    process.kill()
    process.communicate()


def killed(benchmark):
    process, name = benchmark
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    return name


def test_a_folder_goes_with_its_benchmark(tmp_path):
    with scratch_folder(tmp_path) as folder:
        assert folder.name.startswith(PREFIX) and folder.parent == tmp_path
        (folder / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_the_next_benchmark_removes_what_a_killed_one_left_and_nothing_it_points_to(tmp_path, benchmark):
    name = killed(benchmark)
    (tmp_path / "precious").touch()
    assert (tmp_path / name / "deep/file").exists()
    with scratch_folder(tmp_path) as folder:
        assert {path.name for path in tmp_path.iterdir()} == {folder.name, "precious"}


def test_the_folder_of_a_benchmark_that_lives_stays(tmp_path, benchmark):
    assert remove_left_behind(tmp_path) == []
    assert (tmp_path / benchmark[1] / "deep/file").exists()


def test_a_folder_whose_number_is_another_process_by_now_is_left_behind(tmp_path, benchmark):
    name = killed(benchmark)
    _pid, started, namespace, boot = (tmp_path / name / OWNER).read_text().split()
    (tmp_path / name / OWNER).write_text(f"{os.getpid()} {started} {namespace} {boot}")
    assert remove_left_behind(tmp_path) == [name]


def test_a_folder_of_an_earlier_boot_is_left_behind(tmp_path, benchmark):
    name = killed(benchmark)
    _pid, _started, namespace, _boot = (tmp_path / name / OWNER).read_text().split()
    (tmp_path / name / OWNER).write_text(f"{os.getpid()} 1 {namespace} another-boot")
    assert remove_left_behind(tmp_path) == [name]


@pytest.mark.parametrize(
    "case", ["no owner", "torn", "another namespace", "owner is a link", "owner is a pipe", "other"]
)
def test_what_is_not_known_to_be_dead_stays(tmp_path, benchmark, case):
    name = killed(benchmark)
    path = tmp_path / name / OWNER
    text = path.read_text()
    pid, started, namespace, boot = text.split()
    path.unlink()
    match case:
        case "torn":
            path.write_text(f"{pid} {started}")
        case "another namespace":
            path.write_text(f"{pid} {started} {int(namespace) + 1} {boot}")
        case "owner is a link":
            (tmp_path / "elsewhere").write_text(text)
            path.symlink_to(tmp_path / "elsewhere")
        case "owner is a pipe":
            os.mkfifo(path)
        case "other":
            path.write_text(text)
            (tmp_path / name).rename(tmp_path / "mine")
    assert remove_left_behind(tmp_path) == []


def test_a_link_with_such_a_name_is_not_followed(tmp_path, benchmark):
    name = killed(benchmark)
    (tmp_path / name).rename(tmp_path / "precious")
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "precious")
    assert remove_left_behind(tmp_path) == []
    assert (tmp_path / "precious/deep/file").exists()


def test_the_folder_of_another_user_stays(tmp_path, benchmark):
    if os.geteuid() != 0:
        pytest.skip("Only root can give a folder to another user: run this test as root.")
    name = killed(benchmark)
    os.chown(tmp_path / name, 65534, 65534)
    assert remove_left_behind(tmp_path) == []
