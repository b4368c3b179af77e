"""The fixtures that start the whole system once for all tests that use it."""

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from textmill_launcher.model_files import find_demo_file
from textmill_launcher.settings import load_settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

from tests.fakes.processes import LaunchedServer, launched

CONVERT_LIMIT_S = 240
# The demo model's KV cache takes 46,080 bytes a token in fp32, so these bytes hold 4,096 tokens.
REAL_SERVER_KV_BYTES = 256 * 16 * 46_080
REAL_SERVER_ADAPTER_BYTES = 16 << 20

# The tests of the real server stand in these files, because a process of `-n` gets whole files.
REAL_SERVER_FILES = frozenset(
    {
        "tests/deploy/test_deploy_page.py",
        "tests/integration/test_adapters_real.py",
        "tests/integration/test_clients.py",
        "tests/integration/test_completions_real.py",
        "tests/integration/test_documented_clients.py",
        "tests/integration/test_grammars_real.py",
        "tests/integration/test_openai_client.py",
        "tests/integration/test_openai_frameworks.py",
        "tests/integration/test_playground.py",
        "tests/integration/test_real_model.py",
    }
)

REAL_SERVER = "real server"  # the unit of work that these files make together
SERVER_FOLDER = "tests/integration/"

# These files take long, so that they are begun first. A long file that is begun last would keep one process busy while
# the others have nothing to do.
LONG_FILES = (
    "tests/unit/shard/distributed/test_tensor_parallel.py",
    "tests/kernels/test_compile.py",
    "tests/integration/test_launcher.py",
    "tests/integration/test_two_nodes.py",
    "tests/integration/test_plan.py",
    "tests/integration/test_two_ranks.py",
    "tests/integration/test_adapters.py",
)

# Without this, the import of litellm looks for a list of prices on the network.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
# Triton reads this when a kernel is defined: the tests run kernels in Triton's interpreter, on the CPU. The tests that
# compile kernels do so in processes of their own.
os.environ.setdefault("TRITON_INTERPRET", "1")


class OneRealServer(LoadFileScheduling):
    """Gives the files of the real server to one process of `-n`, and each other file to the next free one.

    Long files come first, then the other files that start servers, whose few tests take long, then the files with the
    most tests.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return REAL_SERVER if file in REAL_SERVER_FILES else file

    def _assign_work_unit(self, node: WorkerController) -> None:
        of_servers = (scope for scope in self.workqueue if scope == REAL_SERVER or scope.startswith(SERVER_FOLDER))
        first = next((file for file in LONG_FILES if file in self.workqueue), None) or next(of_servers, None)
        if first is not None:
            self.workqueue.move_to_end(first, last=False)
        super()._assign_work_unit(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneRealServer | None:
    """Choose the scheduler of `--dist loadfile`."""
    return OneRealServer(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import and collect without the collector of garbage, and keep what was made out of its later walks.

    Modules and tests are millions of objects that live to the end.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    """Let the end of the process free what was kept, which libraries otherwise call a leak."""
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse names of tests that differ between processes, and tests of the real server in a file without a name.

    A second server would start for such a file.
    """
    users = {item.nodeid.split("::")[0] for item in items if "real_server" in getattr(item, "fixturenames", ())}
    if unnamed := users - REAL_SERVER_FILES:
        raise pytest.UsageError(f"name the files with tests of real_server in REAL_SERVER_FILES: {sorted(unnamed)}")
    # The processes of `-n` must find the same names.
    if unstable := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"give ids to these parameters, whose names hold an address: {unstable[:5]}")


@pytest.fixture
def thread_loop() -> Iterator[None]:
    """An event loop for a library that asks for the loop of the thread, and that never closes the loop that it gets."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture(scope="session")
def demo_model_folder() -> Path:
    """The demo model as safetensors, in the cache that launchers use too, outside the repository."""
    cache = load_settings([], os.environ).conversion_cache
    command = [sys.executable, "-m", "textmill_shard", "convert", "--gguf", str(find_demo_file()), "--cache-dir", cache]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CONVERT_LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def real_adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder from which the real server loads adapters."""
    return tmp_path_factory.mktemp("real_adapters")


@pytest.fixture(scope="session")
def real_server(
    demo_model_folder: Path, real_adapters: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LaunchedServer]:
    """One ready launcher with the demo model in fp32, for the whole session. Callers may load adapters."""
    arguments = ["--dtype", "float32", "--kv-cache-bytes", str(REAL_SERVER_KV_BYTES)]
    arguments += ["--lora-runtime-updates", "--lora-dir", str(real_adapters)]
    arguments += ["--lora-memory-bytes", str(REAL_SERVER_ADAPTER_BYTES)]
    with launched(arguments, tmp_path_factory.mktemp("real_server")) as server:
        yield server.wait_ready()
