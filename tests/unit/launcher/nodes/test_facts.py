"""Which flags must not differ between nodes."""

from importlib.metadata import version

from textmill_launcher.nodes.facts import facts_of
from textmill_launcher.settings import load_settings

NODES = ["--num-nodes", "2", "--master-addr", "10.0.0.1"]


def test_flags_that_shape_steps_count_and_those_of_one_machine_do_not() -> None:
    same = [
        "--dtype",
        "float32",
        "--max-batch-prefill-tokens",
        "64",
        "--no-native-kernels",
        "--watermark-delta",
        "-1.5",
    ]
    own = ["--kv-cache-bytes", "1000", "--memory-fraction", "0.5", "--num-threads", "3", "--native-cache-dir", "/x"]
    facts = facts_of(load_settings([*NODES, *same, *own, "--json-output", "--port", "99"], {}), num_shard=4)
    assert facts.flags == {
        "--dtype": "float32",
        "--max-step-tokens": "320",  # the prefill budget and room for slots that decode
        "--no-native-kernels": "given",
        "--watermark-delta": "-1.5",
    }
    assert (facts.num_nodes, facts.num_shard) == (2, 4)


def test_versions_are_those_of_the_packages() -> None:
    facts = facts_of(load_settings(NODES, {}), num_shard=1)
    assert facts.versions == {name: version(name) for name in ("textmill", "torch", "transformers")}
