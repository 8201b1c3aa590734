"""The first program of a child process: it shuts itself in, then becomes the program of `run_python`.

It is run as a file, never imported: python -I child_start.py FOLDER REPORT ISOLATED SECONDS MEGABYTES
FOLDER holds program.py. REPORT is the descriptor of a file with the reason why the program did not start. Each step
that fails writes its reason; the last step empties the file. The program does not inherit the descriptor.
"""

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct
import sys

NEW_NAMESPACES = 0x4002_0000 | 0x2800_0000  # network and mounts, IPC and process ids (linux/sched.h)
NEW_USER = 0x1000_0000  # a user who is not root gets the right to the others through a namespace of users
NOBODY = 65534
READ_ALL = 2  # CAP_DAC_READ_SEARCH: the program reads all that root reads, because root's Python may lie under /root
FILE_BYTES, PROCESSES = 1 << 24, 32
# One seed of hashes. Memory for one thread: libraries and malloc reserve up to 128 MB for each other thread.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"}
ENVIRONMENT |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
SOCKET_CALLS = {"x86_64": (0xC000_003E, 41), "aarch64": (0xC000_00B7, 198)}  # machine -> AUDIT_ARCH, number of socket()


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


def hide_processes() -> None:
    """/proc of the new process ids alone. It is empty in a container that masks a part of /proc."""
    flags = 15  # MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
    try:
        call("mount", b"proc", b"/proc", b"proc", flags, None)
    except OSError:
        call("mount", b"tmpfs", b"/proc", b"tmpfs", flags, None)


def forbid_sockets_of_files() -> None:
    """A filter of system calls (linux/seccomp.h) refuses socket(AF_UNIX): a read-only file system lets a program
    connect to Docker, an SSH agent or a database through a socket in a file. socketpair() stays.
    """
    if platform.machine() not in SOCKET_CALLS:
        raise OSError(f"{platform.machine()}, a processor whose system calls are unknown")
    machine, number = SOCKET_CALLS[platform.machine()]
    load, equal, end = 0x20, 0x15, 0x06  # BPF: load a word of seccomp_data; skip lines if it is (not) equal; return
    lines = [
        (load, 0, 0, 4),
        (equal, 0, 4, machine),
        (load, 0, 0, 0),
        (equal, 0, 3, number),
        (load, 0, 0, 16),  # the first argument
        (equal, 0, 1, 1),  # AF_UNIX
        (end, 0, 0, 0x5_0001),  # EPERM
        (end, 0, 0, 0x7FFF_0000),  # allowed
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    call("prctl", 22, 2, struct.pack("HP", len(lines), ctypes.addressof(code)))  # PR_SET_SECCOMP


def dies_with_parent() -> None:
    if sys.platform == "linux":
        call("prctl", 1, signal.SIGKILL)


def own_user(number: int, uid_map: str) -> int:
    """The id of a user for the program of a process `number`, from the last range of ids that the machine maps.

    The limit of processes counts all processes of a user, so two programs of one user would take from each other.
    Raises: OSError if root cannot become such a user, as in a namespace of root alone.
    """
    first, _, length = map(int, uid_map.split()[-3:])
    if length < 1000:
        raise OSError(f"{length} ids of users (uid_map)")
    return min(first + length, 1 << 31) - 2 - number % (length // 2)


def become(user: int) -> None:
    """From root to a user without rights, except to read. The limit of processes does not bind root."""
    call("prctl", 8, 1)  # PR_SET_KEEPCAPS
    call("setgroups", 0, None)
    call("setresgid", NOBODY, NOBODY, NOBODY)
    call("setresuid", user, user, user)
    right = 1 << READ_ALL
    call("capset", (ctypes.c_uint32 * 2)(0x2008_0522, 0), (ctypes.c_uint32 * 6)(right, right, right))
    call("prctl", 47, 2, READ_ALL, 0, 0)  # PR_CAP_AMBIENT_RAISE: the right stays when the program starts


def limit(seconds: int, **limits: int) -> None:
    """Set limits by their names, each soft and hard; of processor time the soft limit sends SIGXCPU, the hard SIGKILL.

    Raises: OSError with the name of a limit above that of the user.
    """
    pairs = {"CPU": (seconds, seconds + 1)} | {name: (value, value) for name, value in limits.items()}
    for name, pair in pairs.items():
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), pair)
        except (ValueError, OSError) as error:
            raise OSError(f"setrlimit {name} {pair[0]}: {error}") from None


def shut_in(folder: str, isolated: bool, user: int) -> None:
    """The steps of the process that becomes the program."""
    dies_with_parent()
    os.chdir(folder)
    if isolated:
        hide_processes()
        if user:
            become(user)
        call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS: no program such as sudo gives rights
        forbid_sockets_of_files()
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # Docker refuses it; then addresses differ, and the program runs as well
            call("personality", 0x4_0000)  # ADDR_NO_RANDOMIZE: `<object at 0x7f...>` is printed alike in each run


def start(folder: str, report: int, isolated: bool, seconds: int, megabytes: int) -> int:
    """Start the program. -> its process id."""
    os.set_inheritable(report, False)
    user = 0
    if isolated and not os.getuid():
        with open("/proc/self/uid_map") as file:
            user = own_user(os.getpid(), file.read())
    if isolated:
        isolate(folder)
        if not os.fork():  # the first process of its namespace: when it dies, the kernel ends all others
            dies_with_parent()
            while True:
                signal.pause()
    dies_with_parent()
    if child := os.fork():
        return child
    shut_in(folder, isolated, user)
    bounds = {"NPROC": PROCESSES} if isolated else {}  # elsewhere it would count all of the user
    limit(seconds, AS=megabytes << 20, FSIZE=FILE_BYTES, CORE=0, NOFILE=64, **bounds)
    options = ["-s", "-B", "-X", "utf8"]  # as -I with an empty environment; -I would draw a new seed of hashes
    os.ftruncate(report, 0)
    os.execve(sys.executable, [sys.executable, *options, "program.py"], ENVIRONMENT)


def main() -> None:
    folder, report, isolated, seconds, megabytes = sys.argv[1], *map(int, sys.argv[2:])
    try:
        child = start(folder, report, bool(isolated), seconds, megabytes)
    except Exception as error:  # each fault before the program is the machine's
        os.ftruncate(report, 0)
        os.pwrite(report, (str(error) or repr(error)).encode(), 0)
        raise SystemExit(1) from None
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
