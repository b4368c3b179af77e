"""CPU time as /proc tells it, against the process's own clock."""

import os
import subprocess
import sys
import time

import pytest

from bench.machine import busy_s, process_s, tree_s

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
