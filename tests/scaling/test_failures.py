"""A process that fails, hangs or never comes: all processes end, and one line names the rank and the step."""

import json

import failures
import pytest


@pytest.fixture(scope="module")
def ended(forks, tmp_path_factory):
    """ended(name) -> for each of the two processes of a case (exit code, stderr). Code None: it wrote none."""
    folder = tmp_path_factory.mktemp("failures")
    (done,) = forks.run([failures.__file__, folder])
    done.check_returncode()

    def of(name, rank):
        code, text = (folder / f"{name}-{rank}.json", folder / f"{name}-{rank}.txt")
        return json.loads(code.read_text())["code"] if code.exists() else None, text.read_text()

    return lambda name: [of(name, rank) for rank in (0, 1) if (folder / f"{name}-{rank}.txt").exists()]


def test_a_fault_of_one_process_is_shown_once_with_rank_and_step(ended):
    (code, text), (other, shown) = ended("fault")
    assert (code, text, other) == (1, "", 1)
    assert shown.endswith("KeyError: 'weight'\n[rank 1] runs/mine/ppo, step 3\n") and shown.count("Traceback") == 1


def test_an_error_in_the_input_of_one_process_is_one_line_with_rank_and_step(ended):
    line = "[rank 1] error: runs/mine/ppo, step 3: rows.jsonl: line 3: needed a prompt, got nothing\n"
    assert ended("input") == [(2, ""), (2, line)]


def test_the_others_name_a_process_that_hangs(ended):
    (code, text), (hung, silent) = ended("hangs")
    assert (code, hung, silent) == (1, None, "")
    assert text == (
        "[rank 0] error: runs/mine/ppo, step 3: rank 1 did not arrive within 5 seconds: stopped, or hanging; if the "
        "work only needs longer, set MINIRLHF_TIMEOUT to more seconds; go on from the last checkpoint with --resume\n"
    )


def test_the_others_name_a_process_that_was_killed(ended):
    assert ended("killed") == [
        (1, "[rank 0] error: runs/mine/ppo, step 3: rank 1 ended without a message: killed; look for a lack of memory; "
            "go on from the last checkpoint with --resume\n"),
        (None, ""),
    ]  # fmt: skip


def test_replicas_that_do_not_divide_the_processes_are_refused_once(ended):
    texts = [text for _, text in ended("hsdp")]
    assert [code for code, _ in ended("hsdp")] == [2, 2] and sorted(map(bool, texts)) == [False, True]
    assert "hsdp needed replicas that divide the 2 processes, got 3" in "".join(texts)


def test_a_process_that_can_write_nothing_at_all_is_named_before_the_others_give_up(ended):
    (code, text), (other, line) = ended("disk")
    assert (code, other) == (2, 2)
    assert "needed the shard of rank 1: waited 4 s" in text and text.count("\n") == 1
    assert line.startswith("[rank 1] error: ") and "step-1: needed to write it, got: No space left on device" in line


def test_a_process_that_never_comes_is_named(ended):
    ((code, text),) = ended("alone")
    assert code == 2 and text.startswith(
        "[rank 0] error: rank 1 of 2 did not start within 5 seconds (MINIRLHF_TIMEOUT)"
    )
    ((code, text),) = ended("no-first")
    assert code == 2 and text.count("\n") == 1
    assert "rank 1 finds no rank 0 within 5 seconds ([Errno 111] Connection refused)" in text


def test_a_port_in_use_is_an_error_of_all_processes(ended):
    (first, text), (second, other) = ended("port")
    assert (first, second) == (2, 2) and text.endswith("the port of rank 0 is in use; set another MASTER_PORT\n")
    assert "(a program answers there that is no rank 0)" in other


def test_a_restart_does_not_read_the_words_of_killed_processes(ended):
    assert ended("again") == [(0, ""), (0, "")]
