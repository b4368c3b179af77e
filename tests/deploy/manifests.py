"""The files of `deploy/` as Python objects, and the pods that they describe."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"

Object = dict[str, Any]  # one Kubernetes object, or a patch of one

OVERLAYS = (
    "autoscaling/hpa",
    "autoscaling/keda",
    "cpu",
    "gateway",
    "kserve",
    "model-cache",
    "monitoring",
    "multi-node",
    "replicas",
    "single-gpu",
    "tensor-parallel",
)
SERVER_CONTAINERS = ("textmill", "main")  # `main` is KServe's name for it


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as an object describes it. `labels` are those of the pod, `spec` is the PodSpec.

    `given` are the variables that a controller adds.
    """

    owner: str  # kind and name of the object
    labels: dict[str, str]
    spec: Object
    given: dict[str, str] = field(default_factory=dict)

    @property
    def has_router(self) -> bool:
        """Whether a router runs in it: a server, and no node other than node 0 of several."""
        return self.is_server and self.given.get("LWS_WORKER_INDEX", "0") == "0"

    @property
    def container(self) -> Object:
        """The only container."""
        [container] = self.spec["containers"]
        return dict(container)

    @property
    def is_server(self) -> bool:
        """Whether the launcher runs in it, and not the download."""
        return self.container["name"] in SERVER_CONTAINERS

    @property
    def command(self) -> list[str]:
        """Command and arguments; the image's entry point is `launcher`."""
        return [*self.container.get("command", ["launcher"]), *self.container.get("args", [])]


def load(path: Path) -> list[Object]:
    """Return the documents of a YAML file."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [document for document in yaml.load_all(path.read_text(), loader) if document is not None]


def overlay_folders(deploy: Path = DEPLOY) -> dict[str, Path]:
    """Return the folder of each overlay by its name, for example `autoscaling/keda`."""
    root = deploy / "kubernetes/overlays"
    return {str(file.parent.relative_to(root)): file.parent for file in sorted(root.rglob("kustomization.yaml"))}


def objects_of(folder: Path) -> list[Object]:
    """Return the complete objects that a folder lists under `resources`, without patches and generated maps."""
    kustomization = load(folder / "kustomization.yaml")[0]
    files = [folder / name for name in kustomization.get("resources", []) if (folder / name).is_file()]
    return [document for file in files for document in load(file)]


def settings_of(folder: Path) -> dict[str, str]:
    """Return the literals of the ConfigMap `textmill` that a folder generates."""
    [generator] = load(folder / "kustomization.yaml")[0]["configMapGenerator"]
    return dict(literal.split("=", 1) for literal in generator["literals"])


def name_of(thing: Object) -> str:
    return f"{thing.get('kind')}/{thing.get('metadata', {}).get('name')}"


def pods_of(things: Sequence[Object]) -> Iterator[Pod]:
    """Yield the pods of Deployments, Jobs, KServe's services, and node 0 and node 1 of LeaderWorkerSets."""
    for thing in things:
        match thing["kind"]:
            case "Deployment" | "Job":
                template = thing["spec"]["template"]
                yield Pod(name_of(thing), template["metadata"].get("labels", {}), template["spec"])
            case "LeaderWorkerSet":
                group = thing["spec"]["leaderWorkerTemplate"]
                for index, key in enumerate(("leaderTemplate", "workerTemplate")):
                    own = group[key]["metadata"].get("labels", {})
                    prefix = "leaderworkerset.sigs.k8s.io"
                    added = {f"{prefix}/name": thing["metadata"]["name"], f"{prefix}/worker-index": str(index)}
                    given = {"LWS_LEADER_ADDRESS": "textmill-0.textmill", "LWS_GROUP_SIZE": str(group["size"])}
                    given["LWS_WORKER_INDEX"] = str(index)
                    yield Pod(f"{name_of(thing)} {key}", {**own, **added}, group[key]["spec"], given)
            case "LLMInferenceService":
                yield Pod(name_of(thing), {}, thing["spec"]["template"])


def walk(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each value inside of a document with the keys that lead to it."""
    yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk(inner, (*path, str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner, path)
