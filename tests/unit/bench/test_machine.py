"""CPU time by /proc, compared with the process's own clock."""

import os
import subprocess
import sys
import threading
import time

import pytest

from bench.machine import busy_s, process_s, threads_s, tree_s

BURN = "import time, sys\nwhile time.process_time() < 0.4: pass\nprint('done', flush=True)\nsys.stdin.read()"


def test_own_time_is_that_of_the_process_clock():
    deadline_s = time.process_time() + 0.1
    while time.process_time() < deadline_s:
        pass
    assert process_s(os.getpid()) == pytest.approx(time.process_time(), abs=0.05)


def test_a_tree_counts_its_children_and_the_machine_counts_all():
    before_s = busy_s()
    with subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"done\n"
        assert process_s(child.pid) >= 0.35
        assert tree_s(os.getpid()) >= process_s(os.getpid()) + 0.35
        assert busy_s() - before_s >= 0.35
        child.communicate()


def test_threads_count_each_for_itself():
    def burn():
        deadline_s = time.thread_time() + 0.1
        while time.thread_time() < deadline_s:
            pass
        burnt.append((threading.get_native_id(), time.thread_time()))
        done.wait(10)

    burnt: list[tuple[int, float]] = []
    done = threading.Event()
    thread = threading.Thread(target=burn)
    thread.start()
    try:
        while not burnt:
            time.sleep(0.001)
        [(number, used_s)] = burnt
        assert threads_s(os.getpid())[number] == pytest.approx(used_s, abs=0.02)
    finally:
        done.set()
        thread.join()
