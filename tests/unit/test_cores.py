"""Quotas of CPU time of containers, in files as the kernel writes them; router and shard count in one way."""

import inspect
import os
from pathlib import Path

import pytest
import textmill_router.cores
import textmill_shard.cores
from textmill_router.text.tokenization import default_tokenize_threads
from textmill_shard.cores import usable_cores
from textmill_shard.settings import default_num_threads

V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu,cpuacct"
IN_V1 = "12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/docker/abc\n"


def write(root: Path, group: str, files: dict[str, str]) -> Path:
    for name, content in {"proc/self/cgroup": group, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("group", "files", "cores"),
    [
        # docker run --cpus 2, version 2, with a namespace of its own
        ("0::/\n", {f"{V2}/cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {f"{V2}/cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {f"{V2}/cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {f"{V2}/cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {f"{V2}/cpu.max": "20000 10000\n"}, 2),
        ("0::/\n", {f"{V2}/cpu.max": "9000000 100000\n"}, 64),
        ("0::/\n", {f"{V2}/cpu.max": "200000\n"}, 64),
        ("0::/\n", {}, 64),
        # a unit of systemd: the quota stands in the group, or in one around it
        ("0::/system.slice/a.service\n", {f"{V2}/system.slice/a.service/cpu.max": "300000 100000"}, 3),
        (
            "0::/system.slice/a.service\n",
            {f"{V2}/system.slice/a.service/cpu.max": "max 100000", f"{V2}/system.slice/cpu.max": "400000 100000"},
            4,
        ),
        # version 1: the path is the host's, the mount is the container's group
        (IN_V1, {f"{V1}/cpu.cfs_quota_us": "200000\n", f"{V1}/cpu.cfs_period_us": "100000\n"}, 2),
        (IN_V1, {f"{V1}/cpu.cfs_quota_us": "-1\n", f"{V1}/cpu.cfs_period_us": "100000\n"}, 64),
        (
            IN_V1,
            {f"{V1}/docker/abc/cpu.cfs_quota_us": "550000", f"{V1}/docker/abc/cpu.cfs_period_us": "100000"},
            5,
        ),
        (
            "1:cpu:/\n",
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "10000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            1,
        ),
        # version 2 beside version 1
        ("5:memory:/\n0::/\n", {"sys/fs/cgroup/unified/cpu.max": "600000 100000"}, 6),
    ],
)
def test_a_quota_counts_as_its_whole_cores(tmp_path: Path, group: str, files: dict[str, str], cores: int) -> None:
    assert usable_cores(write(tmp_path, group, files), affinity=64) == cores


def test_without_files_and_without_a_quota_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, affinity=6) == 6
    (tmp_path / V2).mkdir(parents=True)
    (tmp_path / V2 / "cpu.max").write_text("100000 100000")
    assert usable_cores(tmp_path, affinity=6) == 1  # systems without /proc/self/cgroup
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


def test_router_and_shard_count_in_one_way() -> None:
    assert inspect.getsource(textmill_router.cores) == inspect.getsource(textmill_shard.cores)


def test_both_pools_follow_the_quota(tmp_path: Path) -> None:
    cores = usable_cores(write(tmp_path, "0::/\n", {f"{V2}/cpu.max": "200000 100000"}), affinity=64)
    assert default_num_threads(cores, 1) == 2
    assert default_tokenize_threads(cores) == 1
    assert (default_tokenize_threads(1), default_tokenize_threads(64)) == (1, 4)
