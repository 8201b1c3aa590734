"""The limits of a child process, each met by a program that runs into it."""

import runpy
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from minirlhf.errors import InputError
from minirlhf.rewards import child_process
from minirlhf.rewards.child_process import Result, check_isolation, run_python


@pytest.fixture(scope="module")
def isolated():
    """False on a machine that lets no process shut itself in: the limits hold there too."""
    try:
        check_isolation()
    except InputError:
        return False
    return True


def test_output_input_and_errors_of_a_program(isolated):
    assert run_python("print(input()[::-1], 'ü')", stdin="abc\n", isolated=isolated) == Result("cba ü\n")
    assert run_python("raise SystemExit(3)", isolated=isolated) == Result("", "ended with exit code 3")
    failed = run_python("print(1)\n1 / 0", isolated=isolated)
    assert failed.stdout == "1\n" and failed.error.endswith("ZeroDivisionError: division by zero")
    assert 'File "program.py", line 2' in failed.error  # and no name of a random folder


def test_a_program_prints_the_same_in_each_run(isolated):
    program = "class A: pass\nimport os; print({'a', 'b', 'c'}, A(), dict(os.environ).keys() - {'LC_CTYPE'})"
    first, second = (run_python(program, isolated=isolated) for _ in range(2))
    assert first == second and "PYTHONHASHSEED" in first.stdout and "HOME" not in first.stdout


def test_a_program_that_never_ends_is_stopped(isolated):
    start = time.monotonic()
    busy = run_python("print(1, flush=True)\nwhile True: pass", seconds=0.5, isolated=isolated)
    assert busy == Result("1\n", "ran longer than 0.5 s", timed_out=True)
    assert run_python("import time; time.sleep(60)", seconds=0.1, isolated=isolated).timed_out
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", "killed by SIGSEGV"),
        ("print('a' * 10**8)", "File too large"),
        ("bytearray(10**9)", "MemoryError"),
        ("open('x', 'wb').write(bytes(1 << 25))", ("No space left", "File too large")),
        ("import os\nwhile True:\n    if not os.fork(): os.setsid(), __import__('time').sleep(100)", "unavailable"),
    ],
)
def test_a_program_that_takes_too_much_ends_with_an_error(isolated, program, error):
    if "fork" in program and not isolated:
        program = "raise OSError('unavailable: the test would leave processes behind')"
    result = run_python(program, output_bytes=1000, isolated=isolated)
    assert any(text in result.error for text in ([error] if isinstance(error, str) else error)), result
    assert len(result.stdout) <= 1000 and len(result.error) <= 1020 and not result.timed_out


def test_an_isolated_program_sees_no_network_and_writes_no_file(isolated, tmp_path):
    target = tmp_path / "target"
    tmp_path.chmod(0o777)
    program = f"""
import os, socket
try: open({str(target)!r}, "w")
except OSError as error: print(error.errno)
try: socket.create_connection(("1.1.1.1", 80), timeout=1)
except OSError as error: print(error.errno)
open("own", "w").write("x")
print(sorted(os.listdir(".")), os.getpid() < 5, os.getuid() > 0)
"""
    if isolated:  # 30: read-only file system; 101: network is unreachable
        assert run_python(program).stdout == "30\n101\n['own', 'program.py'] True True\n"
        assert not target.exists()
    else:
        with pytest.raises(InputError, match="isolated=False"):
            run_python(program)


def test_a_machine_that_cannot_isolate_refuses_and_names_the_way_out(tmp_path, monkeypatch):
    start = child_process.START.read_text()
    (tmp_path / "start.py").write_text(start.replace('call("unshare", ', 'call("unshare", 1 | '))  # no such namespace
    monkeypatch.setattr(child_process, "START", tmp_path / "start.py")
    with pytest.raises(InputError, match="unshare: Invalid argument.*isolated=False"):
        run_python("print('must not run')")
    assert run_python("print(1)", isolated=False).stdout == "1\n"


@pytest.fixture
def changed_start(tmp_path, monkeypatch):
    """change(old, new): the next programs start with a changed child_start.py."""

    def change(old: str, new: str) -> None:
        start = child_process.START.read_text()
        assert old in start
        (tmp_path / "start.py").write_text(start.replace(old, new))
        monkeypatch.setattr(child_process, "START", tmp_path / "start.py")

    return change


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("import ctypes\n", "import absent\n", "ended before the program"),
        ("    limit(", "    os.kill(os.getpid(), 9)\n    limit(", "ended before the program"),
        ("    limit(", "    os.setgroups(-1)\n    limit(", "must be a sequence"),
        ("NOFILE=64", "NOFILE=1 << 40", "setrlimit NOFILE 1099511627776: "),
        ("os.execve(sys.executable,", "os.execve('absent',", "No such file"),
    ],
)
def test_a_step_before_the_program_that_fails_is_no_failure_of_the_program(changed_start, old, new, reason):
    changed_start(old, new)
    with pytest.raises(InputError, match=f"^run_python: .*({reason})"):
        run_python("print('must not run')", isolated=False)


def test_addresses_that_the_machine_wants_random_are_no_error(changed_start):
    changed_start('call("personality", ', 'call("unshare", -1 or ')  # Docker refuses this personality
    assert run_python("print(1)", isolated=False) == Result("1\n")


def test_a_python_in_which_the_empty_program_fails_is_refused(isolated, changed_start):
    if isolated:
        changed_start('*options, "program.py"]', '*options, "absent.py"]')
        with pytest.raises(InputError, match="needed a Python that runs the empty program.*absent.py"):
            check_isolation.__wrapped__()


def test_programs_do_not_count_the_processes_of_each_other(isolated):
    threads = "import threading, time\nfor _ in range(20): threading.Thread(target=time.sleep, args=(0.5,)).start()"
    processes = "import os, time\nfor _ in range(20): os.fork() or (time.sleep(0.5), os._exit(0))"
    with ThreadPoolExecutor(4) as pool:
        programs = [threads, processes, threads, processes]
        assert list(pool.map(lambda code: run_python(code, isolated=isolated), programs)) == [Result("")] * 4


def test_each_program_of_root_has_a_user_in_the_range_of_the_machine():
    own_user = runpy.run_path(str(child_process.START))["own_user"]
    assert own_user(5, "0 0 4294967295\n") == 2**31 - 7
    assert own_user(5, "0 1000 1\n1 100000 65536\n") == 65530
    assert len({own_user(number, "0 100000 65536") for number in range(32768)}) == 32768
    with pytest.raises(OSError, match="^1 ids"):  # unshare --map-root-user
        own_user(5, "0 1000 1\n")


def test_numpy_needs_the_memory_of_a_thread_only():
    program = "import numpy, os; print(numpy.ones((300, 300)) @ numpy.ones(300), os.environ['OPENBLAS_NUM_THREADS'])"
    assert run_python(program, isolated=False).stdout.endswith("1\n")


OTHERS = """
import os, socket
pairs = socket.socketpair()
try: print(socket.socket(socket.AF_UNIX).connect({path!r}))
except OSError as error: print(error.errno)
print(sorted(filter(str.isdigit, os.listdir("/proc"))), os.path.exists("/proc/self/fd"))
"""


def test_an_isolated_program_meets_no_other_process(isolated, tmp_path, changed_start):
    if not isolated:
        pytest.skip("this machine cannot isolate")
    tmp_path.chmod(0o777)
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        (tmp_path / "s").chmod(0o777)
        assert run_python(OTHERS.format(path=path)) == Result("1\n['1', '2'] True\n")  # 1: not permitted
        changed_start('b"proc", b"/proc", b"proc"', 'b"proc", b"/proc", b"absent"')  # as where /proc has masks
        assert run_python(OTHERS.format(path=path)) == Result("1\n[] False\n")


@pytest.mark.parametrize("given", [{"seconds": 0}, {"seconds": float("nan")}, {"megabytes": 0}, {"output_bytes": 0}])
def test_limits_of_nothing_are_refused(given):
    with pytest.raises(InputError, match="needed seconds, megabytes and output_bytes above 0, got"):
        run_python("", **given)
