"""Exit codes and messages of commands that signals, a full disk or a closed pipe end."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from foveal.cli import main
from foveal.prediction.output import Output, read_rows
from tests.tiny import TINY

HERE = ["--device", "cpu", "--batch-size", "1"]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["fit", "demo", *TINY, "--steps", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def images(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    assert main(["data", str(run), "--export", str(folder), "--count", "4"]) == 0
    return folder


def command(tmp_path, *argv, prepare):
    """Run a command in a new process group; returns its exit code as `subprocess` does, and its output."""
    said = tmp_path / "said"
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setpgid(0, 0)
            descriptor = os.open(said, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
            sys.argv = ["foveal", *map(str, argv)]
            for number in SIGNALS:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            prepare()
            code = main()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.read_text()


def after_two_batches(do):
    add, count = Output.add, [0]

    def added(self, rows):
        add(self, rows)
        count[0] += 1
        if count[0] == 2:
            do()

    Output.add = added


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("group", [False, True])
def test_predict_ends_by_a_signal_and_goes_on(run, images, tmp_path, number, group):
    argv = ["predict", run, images, "--out", tmp_path / "rows.csv", *HERE]
    send = (lambda: os.killpg(0, number)) if group else (lambda: os.kill(os.getpid(), number))
    code, said = command(tmp_path, *argv, prepare=lambda: after_two_batches(send))
    by = "" if number == signal.SIGINT else f" by {number.name}"
    assert (code, said) == (
        128 + number,
        f"foveal: interrupted{by}; the rows of 1 of 4 images are safe; the same command goes on\n",
    )
    code, said = command(tmp_path, *argv, prepare=lambda: None)
    assert code == 0 and "2 predicted, 2 were done before" in said
    assert len(list(read_rows(tmp_path / "rows.csv"))) == 4


def test_a_second_signal_ends_at_once(run, images, tmp_path):
    def twice():
        close = Output.close
        Output.close = lambda self: (os.kill(os.getpid(), signal.SIGTERM), close(self))
        after_two_batches(lambda: os.kill(os.getpid(), signal.SIGINT))

    code, said = command(tmp_path, "predict", run, images, "--out", tmp_path / "rows.csv", *HERE, prepare=twice)
    assert (code, said) == (-signal.SIGTERM, "")


def test_a_signal_that_was_ignored_stays_ignored(run, images, tmp_path):
    def nohup():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        after_two_batches(lambda: os.kill(os.getpid(), signal.SIGHUP))

    code, said = command(tmp_path, "predict", run, images, "--out", tmp_path / "rows.csv", *HERE, prepare=nohup)
    assert code == 0 and "4 predicted" in said


@pytest.mark.parametrize(("number", "group"), [*((number, True) for number in SIGNALS), (signal.SIGTERM, False)])
def test_a_signal_while_workers_read(run, images, tmp_path, number, group):
    for i in range(10):
        shutil.copytree(images, tmp_path / "data" / "test" / str(i))

    def send():
        from foveal.data import loader

        unpack = loader._unpack
        kill = (lambda: os.killpg(0, number)) if group else (lambda: os.kill(os.getpid(), number))
        loader._unpack = lambda packed: (kill(), unpack(packed))[1]

    argv = [
        "evaluate",
        run,
        "--data",
        "folder",
        "--data.root",
        tmp_path / "data",
        "--workers",
        "2",
        "--out",
        tmp_path,
        *HERE,
    ]
    code, said = command(tmp_path, *argv, prepare=send)
    by = "" if number == signal.SIGINT else f" by {number.name}"
    assert (code, said) == (128 + number, f"foveal: interrupted{by}; the same command starts again\n")


def test_a_disk_that_is_full_is_told(run, images, tmp_path):
    def limit():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (2500, resource.RLIM_INFINITY))

    code, said = command(tmp_path, "predict", run, images, "--out", tmp_path / "rows.csv", *HERE, prepare=limit)
    assert code == 1 and said.startswith(
        f"foveal: {tmp_path / '.rows.csv.foveal'}: cannot be written (File too large); the rows of "
    )
    assert said.count("\n") == 1 and "repeat the command" in said


# ---- standard output


@pytest.mark.parametrize(
    ("redirection", "code", "says"),
    [
        (
            "> /dev/full",
            1,
            "foveal: output: cannot be written (No space left on device); make space or send it elsewhere, and",
        ),
        ("2> /dev/full", 0, ""),
        ("> /dev/full 2>&1", 1, ""),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("| true", 141, ""),
    ],
)
@pytest.mark.parametrize("argv", ["recipes", "--help", "--version"])
def test_output_that_cannot_be_written(redirection, code, says, argv):
    shell = f"{sys.executable} -m foveal {argv} {redirection}; exit ${{PIPESTATUS[0]}}"
    if "|" in redirection:
        shell = f"(sleep 0.5; {sys.executable} -m foveal {argv}; echo $? >&2) {redirection}"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False, env=buffered)
    if "|" in redirection:
        assert done.stderr == f"{code}\n"
        return
    assert done.returncode == code and done.stderr.startswith(says) and done.stderr.count("\n") == bool(says), (
        done.stderr
    )


def test_a_file_does_not_become_the_standard_error(tmp_path):
    """If it is closed at the start, the first file that is opened gets its number."""
    code = (
        "import os, sys; sys.argv[1:] = ['--version']; from foveal.cli import main; main(); "
        "print(os.open(sys.argv[0], os.O_RDONLY))"
    )
    (tmp_path / "script.py").write_text(code)
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} {tmp_path / 'script.py'} 2>&-"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) > 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("x = (", "SyntaxError: '(' was never closed, FILE, line 1"),
        ("\nraise RuntimeError('no weights\\nhere')", "RuntimeError: no weights, FILE, line 2"),
        ("import nonsense_package", "ModuleNotFoundError: No module named 'nonsense_package', FILE, line 1"),
    ],
)
def test_a_module_that_cannot_be_loaded_is_one_sentence(tmp_path, capsys, content, reason):
    file = tmp_path / f"{reason.partition(':')[0].lower()}.py"
    file.write_text(content)
    assert main(["models", "--import", str(file)]) == 2
    told = capsys.readouterr().err
    assert (
        told == f"foveal: --import {file}: cannot be loaded ({reason.replace('FILE', str(file))}); correct the module\n"
    )


def test_half_a_size_is_not_understood(capsys):
    assert main(["cost", "test_resnet", "--image-size", "224x"]) == 2
    assert "224x" in capsys.readouterr().err
