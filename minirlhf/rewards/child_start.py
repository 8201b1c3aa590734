"""The first program of a child process: it shuts itself in, then becomes the program of `run_python`.

It is run as a file, never imported: python -I child_start.py FOLDER REPORT ISOLATED SECONDS MEGABYTES
FOLDER holds program.py. A reason why the machine cannot isolate is written to the file descriptor REPORT.
"""

import ctypes
import os
import resource
import signal
import sys

NEW_NAMESPACES = 0x4002_0000 | 0x2800_0000  # network and mounts, IPC and process ids (linux/sched.h)
NEW_USER = 0x1000_0000  # a user who is not root gets the right to the others through a namespace of users
NOBODY = 65534
READ_ALL = 2  # CAP_DAC_READ_SEARCH: nobody reads all that root reads, because the Python of root may lie under /root
FILE_BYTES, PROCESSES = 1 << 24, 32


def call(name: str, *arguments: object) -> None:
    """Call a function of the C library; OSError with its name if it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def isolate(folder: str) -> None:
    """No network, no other processes, and no file that can be written, except in `folder`: 16 MB in memory."""
    user, group = os.getuid(), os.getgid()
    call("unshare", NEW_NAMESPACES | (NEW_USER if user else 0))
    if user:
        for file, text in (("setgroups", "deny"), ("gid_map", f"{group} {group} 1"), ("uid_map", f"{user} {user} 1")):
            with open(f"/proc/self/{file}", "w") as out:
                out.write(text)
    call("mount", None, b"/", None, 0x4_4000, None)  # MS_REC | MS_PRIVATE: the rest of the machine sees none of this
    read_only = (ctypes.c_uint64 * 4)(1)  # MOUNT_ATTR_RDONLY
    call("syscall", 442, -100, b"/", 0x8000, read_only, ctypes.sizeof(read_only))  # mount_setattr, AT_RECURSIVE
    with open(f"{folder}/program.py", "rb") as file:
        program = file.read()
    call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", 6, b"size=16m")  # MS_NODEV | MS_NOSUID
    with open(f"{folder}/program.py", "wb") as file:
        file.write(program)


def dies_with_parent() -> None:
    if sys.platform == "linux":
        call("prctl", 1, signal.SIGKILL)


def become_nobody() -> None:
    """From root to a user without rights, except to read. The limit of processes does not bind root."""
    call("prctl", 8, 1)  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    right = 1 << READ_ALL
    call("capset", (ctypes.c_uint32 * 2)(0x2008_0522, 0), (ctypes.c_uint32 * 6)(right, right, right))
    call("prctl", 47, 2, READ_ALL, 0, 0)  # PR_CAP_AMBIENT_RAISE: the right stays when the program starts


def limit(seconds: int, megabytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # the first sends SIGXCPU, the second SIGKILL
    limits = {"AS": megabytes << 20, "FSIZE": FILE_BYTES, "CORE": 0, "NOFILE": 64, "NPROC": PROCESSES}
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def main() -> None:
    folder, report, isolated, seconds, megabytes = sys.argv[1], *map(int, sys.argv[2:])
    os.set_inheritable(report, False)
    dies_with_parent()
    if isolated:
        try:
            isolate(folder)
        except (OSError, AttributeError) as error:  # AttributeError: another system has no unshare
            os.write(report, str(error).encode())
            raise SystemExit(1) from None
        if not os.fork():  # the first process of its namespace: when it dies, the kernel ends all others
            dies_with_parent()
            while True:
                signal.pause()
    if not (child := os.fork()):
        dies_with_parent()
        os.chdir(folder)
        if isolated and not os.getuid():
            become_nobody()
        if isolated:
            call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS: no program such as sudo gives rights
        if sys.platform == "linux":
            call("personality", 0x4_0000)  # ADDR_NO_RANDOMIZE: `<object at 0x7f...>` is printed alike in each run
        limit(seconds, megabytes)
        options = ["-s", "-B", "-X", "utf8"]  # as -I with an empty environment; -I would draw a new seed of hashes
        os.execve(sys.executable, [sys.executable, *options, "program.py"], {"PYTHONHASHSEED": "0"})
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
