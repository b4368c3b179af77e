"""What has to fit together in `deploy/` beyond what a schema sees. Each check returns a sentence for each problem.

`whole` checks look at complete objects that are applied together; `text` checks look at any document, also at patches.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from textmill_launcher import hub_download
from textmill_launcher.errors import LaunchError
from textmill_launcher.settings import ALL_OPTIONS, TOKEN_VARIABLES, Settings, load_settings
from textmill_launcher.shard_group import SHARD_GRACE_S

from tests.deploy.manifests import Object, Pod, name_of, pods_of, walk
from tests.deploy.promql import labels_of, metrics_of
from tests.deploy.server_facts import ServerFacts

PROBES = {"startup": "/health/startup", "readiness": "/health/ready", "liveness": "/health/live"}
SPARE_S = 5  # between the end of the last process and the runtime's SIGKILL
GPU = "nvidia.com/gpu"
# What others than the launcher read: the hub's client, the shell, torch and Triton.
OTHER_VARIABLES = {"HF_HUB_OFFLINE", "HOME", "USER", "XDG_CACHE_HOME", *TOKEN_VARIABLES}
VARIABLES = {
    *(name for option in ALL_OPTIONS for name in (*option.variables, *option.platform_variables)),
    *OTHER_VARIABLES,
}
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_FACTORS = {"": 1.0, "m": 1e-3} | {
    unit: base ** (power + 1)
    for base, units in ((1000.0, ("k", "M", "G", "T", "P")), (1024.0, ("Ki", "Mi", "Gi", "Ti", "Pi")))
    for power, unit in enumerate(units)
}


def amount(quantity: object) -> float:
    """Return the number that a quantity such as `8Gi` or `800m` means; raises ValueError for anything else."""
    text = str(quantity)
    if QUANTITY.fullmatch(text) is None:
        raise ValueError(f"{text!r} is no quantity")
    unit = text.lstrip("0123456789.")
    return float(text.removesuffix(unit)) * _FACTORS[unit]


# Any document


def quantities(document: Object) -> Iterator[str]:
    """Each quantity parses."""
    for path, value in walk(document):
        is_quantity = path[-2:-1] in (("requests",), ("limits",)) or path[-1:] in (("sizeLimit",), ("averageValue",))
        if is_quantity and not isinstance(value, dict | list):
            try:
                amount(value)
            except ValueError as error:
                yield f"{'.'.join(path)}: {error}"


def images(document: Object) -> Iterator[str]:
    """Each image has a tag or a digest, and the tag is not `latest`."""
    for path, value in walk(document):
        if path[-1:] == ("image",) and isinstance(value, str) and value != "textmill":  # Kustomize replaces it
            tag = value.rpartition("/")[2].partition(":")[2]
            if tag in ("", "latest"):
                yield f"{'.'.join(path)}: {value} has no fixed tag"


def variables(document: Object) -> Iterator[str]:
    """Each environment variable is one that somebody reads."""
    for path, value in walk(document):
        if path[-1:] == ("env",) and isinstance(value, list):
            unknown = {entry["name"] for entry in value} - VARIABLES
            yield from (f"{'.'.join(path)}: nobody reads the variable {name}" for name in sorted(unknown))


def routes(document: Object, facts: ServerFacts) -> Iterator[str]:
    """Each probe and each scrape asks a path that answers 200 without a key."""
    for path, value in walk(document):
        asked = path[-2:] in (("httpGet", "path"), ("endpoints", "path"))
        if asked and value not in facts.answering:
            yield f"{'.'.join(path)}: {value} does not answer"


def expressions(document: Object) -> Iterator[tuple[str, str]]:
    """Yield each PromQL expression of rules, scalers and autoscalers, with the keys that lead there."""
    for path, value in walk(document):
        if isinstance(value, str) and (path[-1] in ("expr", "query") or path[-3:] == ("pods", "metric", "name")):
            yield ".".join(path), value
        if isinstance(value, str) and path[-1].endswith("Spec"):
            yield ".".join(path), value


def series(where: str, expression: str, facts: ServerFacts) -> Iterator[str]:
    """Each metric of an expression is on the live page, and each label is one that its metrics have."""
    names = metrics_of(expression)
    missing = names - facts.metrics - {"up"}
    yield from (f"{where}: there is no metric {name}" for name in sorted(missing))
    known = set().union(*(facts.labels(name) for name in names)) if names else set()
    yield from (f"{where}: no metric there has the label {name}" for name in sorted(labels_of(expression) - known))
    if not names:
        yield f"{where}: {expression!r} names no metric"


def shards_and_devices(document: Object) -> Iterator[str]:
    """A container that names its shards has as many GPUs, and one that has GPUs names its shards."""
    for _, value in walk(document):
        if not isinstance(value, dict) or "args" not in value or "resources" not in value:
            continue
        gpus = value["resources"].get("limits", {}).get(GPU)
        arguments = value["args"]
        shards = arguments[arguments.index("--num-shard") + 1] if "--num-shard" in arguments else None
        if gpus is not None and str(gpus) != shards:
            yield f"container {value.get('name')}: {gpus} GPUs for --num-shard {shards}"
        if gpus is None and shards not in (None, "1"):
            yield f"container {value.get('name')}: --num-shard {shards} without GPUs"


def flags(document: Object) -> Iterator[str]:
    """The launcher takes the arguments of each container that is called as the server's; patches have no command."""
    for path, value in walk(document):
        if path[-1:] == ("containers",) and isinstance(value, dict) and value.get("name") == "textmill":
            settings = launcher_settings(["launcher", *value.get("args", [])], {"MODEL_ID": "org/model"})
            if isinstance(settings, str):
                yield f"container textmill: the launcher refuses it: {settings}"


def text_problems(document: Object, facts: ServerFacts) -> list[str]:
    """All checks that need no other document."""
    found = [*quantities(document), *images(document), *variables(document), *routes(document, facts)]
    found += flags(document)
    found += [problem for where, text in expressions(document) for problem in series(where, text, facts)]
    return [*found, *shards_and_devices(document)]


# Objects that are applied together


def whole_problems(things: Sequence[Object]) -> list[str]:
    """All checks of objects that are applied together."""
    found: list[str] = []
    for pod in pods_of(things):
        environ = environment(pod, things)
        for check in (pod_settings, volumes, ports):
            found += [f"{pod.owner}: {problem}" for problem in check(pod)]
        if pod.is_server:
            found += [f"{pod.owner}: {problem}" for problem in server(pod, environ)]
        else:
            found += [f"{pod.owner}: {problem}" for problem in download(pod)]
    for check_all in (selectors, references, strategies, nodes):
        found += check_all(things)
    return found


def environment(pod: Pod, things: Sequence[Object]) -> dict[str, str]:
    """Return the variables of a pod: those of its ConfigMaps, then its own. Secrets stand as the word `secret`."""
    values: dict[str, str] = dict(pod.given)
    for source in pod.container.get("envFrom", []):
        name = source["configMapRef"]["name"]
        maps = [thing for thing in things if thing["kind"] == "ConfigMap" and thing["metadata"]["name"] == name]
        for thing in maps:
            values |= thing["data"]
    for entry in pod.container.get("env", []):
        values[entry["name"]] = entry.get("value", "secret")
    return values


def launcher_settings(command: Sequence[str], environ: Mapping[str, str]) -> Settings | str:
    """Return what the launcher makes of a command line and an environment, or the reason why it refuses them."""
    filled = [re.sub(r"\$\((\w+)\)", lambda match: environ.get(match[1], match[0]), part) for part in command[1:]]
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return load_settings(filled, {"HOME": "/home/textmill", **environ})
    except LaunchError as error:
        return str(error)
    except SystemExit:
        return complaint.getvalue().strip().splitlines()[-1]


def server(pod: Pod, environ: Mapping[str, str]) -> Iterator[str]:
    """The launcher takes flags and variables, and what they say fits the rest of the pod."""
    yield from (f"nobody reads the variable {name}" for name in sorted(set(environ) - VARIABLES))
    if pod.command[0] != "launcher":
        yield f"{pod.command[0]} is not the launcher"
        return
    settings = launcher_settings(pod.command, environ)
    if isinstance(settings, str):
        yield f"the launcher refuses it: {settings}"
        return
    container, spec = pod.container, pod.spec
    listening = [port["containerPort"] for port in container.get("ports", [])]
    if listening != ([settings.port] if pod.has_router else []):
        yield f"containerPort is {listening}, the launcher listens on {settings.port}"
    if settings.hostname != "0.0.0.0":
        yield f"listens on {settings.hostname}: nobody else reaches that"
    grace_s = spec.get("terminationGracePeriodSeconds", 30)
    sleep_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    needed_s = sleep_s + settings.shutdown_delay + settings.graceful_termination_timeout + SHARD_GRACE_S + SPARE_S
    if grace_s <= needed_s:
        yield f"terminationGracePeriodSeconds is {grace_s}, preStop, router, shards and {SPARE_S} s take {needed_s:g}"
    if not sleep_s:
        yield "no preStop sleep: balancers lose calls until they notice that the pod leaves"
    if environ.get("HF_HUB_OFFLINE") != "1":
        yield "HF_HUB_OFFLINE is not 1"
    startup = container.get("startupProbe") if pod.has_router else None
    if startup is not None and startup["periodSeconds"] * startup["failureThreshold"] < 600:
        yield "the startup probe gives a model less than ten minutes"
    for name in ("startup", "readiness", "liveness") if pod.has_router else ():
        path = container[f"{name}Probe"]["httpGet"]["path"]
        if path != PROBES[name]:
            yield f"the {name} probe asks {path}, and {PROBES[name]} answers its question"
    if settings.device == "cpu" and settings.memory_fraction is None:
        yield "a CPU pod needs --memory-fraction, the default is for shared machines"
    gpus = container["resources"]["limits"].get(GPU, 0)
    wanted = 0 if settings.device in ("cpu", None) else settings.num_shard
    if int(gpus) != wanted:
        yield f"{gpus} GPUs for {wanted} shards on GPUs"


def download(pod: Pod) -> Iterator[str]:
    """The download knows its flags."""
    if pod.command[:3] != ["python", "-m", "textmill_launcher.hub_download"]:
        yield f"{pod.command[:3]} is not the download"
        return
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            hub_download.build_parser().parse_args(pod.command[3:])
    except SystemExit:
        yield f"the download refuses it: {complaint.getvalue().strip().splitlines()[-1]}"


WANTED_OF_POD: tuple[tuple[str, Callable[[Object], Any], Any], ...] = (
    ("automountServiceAccountToken", lambda spec: spec.get("automountServiceAccountToken"), False),
    ("enableServiceLinks", lambda spec: spec.get("enableServiceLinks"), False),
    ("runAsNonRoot", lambda spec: spec.get("securityContext", {}).get("runAsNonRoot"), True),
    (
        "seccompProfile.type",
        lambda spec: spec.get("securityContext", {}).get("seccompProfile", {}).get("type"),
        "RuntimeDefault",
    ),
    (
        "fsGroupChangePolicy",
        lambda spec: spec.get("securityContext", {}).get("fsGroupChangePolicy"),
        "OnRootMismatch",
    ),
    ("fsGroup is a number", lambda spec: isinstance(spec.get("securityContext", {}).get("fsGroup"), int), True),
)
WANTED_OF_CONTAINER: tuple[tuple[str, Callable[[Object], Any], Any], ...] = (
    (
        "allowPrivilegeEscalation",
        lambda box: box.get("securityContext", {}).get("allowPrivilegeEscalation"),
        False,
    ),
    ("readOnlyRootFilesystem", lambda box: box.get("securityContext", {}).get("readOnlyRootFilesystem"), True),
    ("capabilities.drop", lambda box: box.get("securityContext", {}).get("capabilities", {}).get("drop"), ["ALL"]),
    ("terminationMessagePolicy", lambda box: box.get("terminationMessagePolicy"), "FallbackToLogsOnError"),
    ("a limit of CPU", lambda box: "cpu" in box.get("resources", {}).get("limits", {}), False),
    ("a request of CPU", lambda box: "cpu" in box.get("resources", {}).get("requests", {}), True),
    (
        "requested memory is its limit",
        lambda box: (
            box.get("resources", {}).get("requests", {}).get("memory")
            == box.get("resources", {}).get("limits", {}).get("memory", "none")
        ),
        True,
    ),
)


def pod_settings(pod: Pod) -> Iterator[str]:
    """The settings that every pod of ours has."""
    for wanted, thing in ((WANTED_OF_POD, pod.spec), (WANTED_OF_CONTAINER, pod.container)):
        for what, look, value in wanted:
            found = look(thing)
            if found != value:
                yield f"{what} is {found}, wanted {value}"


def volumes(pod: Pod) -> Iterator[str]:
    """Mounts and volumes match; HOME and /tmp can be written; weights cannot; shared memory fits the limit."""
    declared = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
    mounts = {mount["mountPath"]: mount for mount in pod.container.get("volumeMounts", [])}
    named = {mount["name"] for mount in mounts.values()}
    yield from (f"no volume is called {name}" for name in sorted(named - set(declared)))
    yield from (f"nothing mounts the volume {name}" for name in sorted(set(declared) - named))
    for path in ("/home/textmill", "/tmp"):
        if "emptyDir" not in declared.get(mounts.get(path, {}).get("name"), {}):
            yield f"{path} is no emptyDir"
    if not pod.is_server:
        return
    if "/models" in mounts and not mounts["/models"].get("readOnly"):
        yield "the weights are mounted for writing"
    shared = declared.get(mounts.get("/dev/shm", {}).get("name"), {}).get("emptyDir", {})
    if shared.get("medium") != "Memory":
        yield "/dev/shm is no emptyDir in memory"
        return
    with contextlib.suppress(ValueError):  # quantities() tells
        shared_bytes, limit_bytes = (
            amount(shared.get("sizeLimit", "0")),
            amount(pod.container["resources"]["limits"]["memory"]),
        )
        gpus = int(pod.container["resources"]["limits"].get(GPU, 1))
        if not (8 if gpus > 1 else 1) * 1024**3 <= shared_bytes <= limit_bytes / 2:
            yield f"/dev/shm of {shared.get('sizeLimit')} for {gpus} shards"


def ports(pod: Pod) -> Iterator[str]:
    """Probes name ports of the container."""
    named = {port["name"] for port in pod.container.get("ports", [])}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = pod.container.get(probe, {}).get("httpGet", {}).get("port")
        if pod.has_router and asked not in named:
            yield f"{probe} asks the port {asked}, there are {sorted(named)}"


def selectors(things: Sequence[Object]) -> Iterator[str]:
    """Whatever selects pods finds some, and names ports that they have."""
    pods = list(pods_of(things))
    services = [thing for thing in things if thing["kind"] == "Service"]
    for thing in things:
        spec = thing.get("spec", {})
        match thing["kind"]:
            case "Deployment":
                wanted = [spec["selector"]["matchLabels"]]
                spread = spec["template"]["spec"].get("topologySpreadConstraints", [])
                if not spread:
                    yield f"{name_of(thing)}: nothing spreads its pods"
                wanted += [entry["labelSelector"]["matchLabels"] for entry in spread]
                found = [pod for pod in pods if pod.owner == name_of(thing)]
            case "Service":
                wanted, found = [spec["selector"]], pods
            case "PodDisruptionBudget" | "InferencePool":
                wanted, found = [spec["selector"]["matchLabels"]], pods
            case "NetworkPolicy":
                wanted, found = [spec["podSelector"]["matchLabels"]], pods
            case "ServiceMonitor":
                wanted = [spec["selector"]["matchLabels"]]
                if not any(wanted[0].items() <= service["metadata"]["labels"].items() for service in services):
                    yield f"{name_of(thing)}: selects no Service"
                known = {port["name"] for service in services for port in service["spec"]["ports"]}
                asked = {endpoint["port"] for endpoint in spec["endpoints"]}
                yield from (f"{name_of(thing)}: no Service has the port {name}" for name in sorted(asked - known))
                continue
            case _:
                continue
        for labels in wanted:
            chosen = [pod for pod in found if labels.items() <= pod.labels.items()]
            if not chosen:
                yield f"{name_of(thing)}: selects no pod by {labels}"
            listening = [port for pod in chosen for port in pod.container.get("ports", [])]
            known_ports = {port[key] for port in listening for key in ("name", "containerPort")}
            asked_ports = {port.get("targetPort", port.get("port")) for port in spec.get("ports", [])}
            asked_ports |= {port["number"] for port in spec.get("targetPorts", [])}
            asked_ports |= {port["port"] for rule in spec.get("ingress", []) for port in rule.get("ports", [])}
            for port in sorted(map(str, asked_ports - known_ports)):
                yield f"{name_of(thing)}: no pod has the port {port}"


def references(things: Sequence[Object]) -> Iterator[str]:
    """What an object names is there: accounts, maps, targets of scalers, pools; claims, where the bundle makes any."""
    there = {name_of(thing) for thing in things}
    claims = {thing["metadata"]["name"] for thing in things if thing["kind"] == "PersistentVolumeClaim"}
    for pod in pods_of(things):
        account = pod.spec.get("serviceAccountName")
        if account is not None and f"ServiceAccount/{account}" not in there:
            yield f"{pod.owner}: there is no ServiceAccount {account}"
        for source in pod.container.get("envFrom", []):
            if f"ConfigMap/{source['configMapRef']['name']}" not in there:
                yield f"{pod.owner}: there is no ConfigMap {source['configMapRef']['name']}"
        for volume in pod.spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claims and claim is not None and claim not in claims:
                yield f"{pod.owner}: there is no claim {claim}"
    for thing in things:
        target = thing.get("spec", {}).get("scaleTargetRef")
        if target is not None and f"{target['kind']}/{target['name']}" not in there:
            yield f"{name_of(thing)}: there is no {target['kind']} {target['name']}"
        for rule in thing["spec"]["rules"] if thing["kind"] == "HTTPRoute" else ():
            for backend in rule["backendRefs"]:
                if f"{backend.get('kind', 'Service')}/{backend['name']}" not in there:
                    yield f"{name_of(thing)}: there is no {backend.get('kind', 'Service')} {backend['name']}"
        picker = thing.get("spec", {}).get("endpointPickerRef")
        if picker is not None and f"ConfigMap/{picker['name']}" not in there:
            yield f"{name_of(thing)}: nothing configures the picker {picker['name']}"
    yield from _same_model(things)


def _same_model(things: Sequence[Object]) -> Iterator[str]:
    """Where one bundle downloads and serves, both mean the same files."""
    pods = list(pods_of(things))
    downloads = [hub_download.build_parser().parse_known_args(pod.command[3:])[0] for pod in pods if not pod.is_server]
    for pod in pods:
        settings = launcher_settings(pod.command, environment(pod, things)) if pod.is_server else ""
        for got in downloads if isinstance(settings, Settings) else ():
            assert isinstance(settings, Settings)
            served = (settings.model_id, settings.revision, settings.huggingface_hub_cache)
            fetched = (got.model_id, got.revision, got.cache_dir)
            if served != fetched:
                yield f"{pod.owner}: serves {served}, the download fetches {fetched}"


def strategies(things: Sequence[Object]) -> Iterator[str]:
    """Rollouts keep all servers; scalers own the number of replicas; budgets let nodes be drained."""
    is_scaled = any("scaleTargetRef" in thing.get("spec", {}) for thing in things)
    for thing in things:
        spec = thing.get("spec", {})
        if thing["kind"] == "Deployment":
            if spec["strategy"].get("rollingUpdate") != {"maxUnavailable": 0, "maxSurge": 1}:
                yield f"{name_of(thing)}: rollingUpdate is {spec['strategy'].get('rollingUpdate')}"
            startup = spec["template"]["spec"]["containers"][0]["startupProbe"]
            if spec["progressDeadlineSeconds"] <= startup["periodSeconds"] * startup["failureThreshold"]:
                yield f"{name_of(thing)}: a rollout is given up before the startup probe is"
            if is_scaled and "replicas" in spec:
                yield f"{name_of(thing)}: names replicas beside a scaler"
        budget = (spec.get("maxUnavailable"), spec.get("unhealthyPodEvictionPolicy"))
        if thing["kind"] == "PodDisruptionBudget" and budget != (1, "AlwaysAllow"):
            yield f"{name_of(thing)}: wanted maxUnavailable 1 and AlwaysAllow"
        if thing["kind"] == "ServiceAccount" and thing.get("automountServiceAccountToken") is not False:
            yield f"{name_of(thing)}: mounts a token"


def nodes(things: Sequence[Object]) -> Iterator[str]:
    """All nodes of a model get the same arguments, and may talk to each other."""
    for thing in things:
        if thing["kind"] != "LeaderWorkerSet":
            continue
        group = thing["spec"]["leaderWorkerTemplate"]
        first, other = (group[key]["spec"]["containers"][0] for key in ("leaderTemplate", "workerTemplate"))
        for what in ("image", "args", "resources"):
            if first[what] != other[what]:
                yield f"{name_of(thing)}: {what} of node 0 differ from those of the others"
        own = group["workerTemplate"]["metadata"]["labels"]
        for policy in (entry for entry in things if entry["kind"] == "NetworkPolicy"):
            for side, peers in (("ingress", "from"), ("egress", "to")):
                is_open = any(
                    not rule.get("ports") and peer.get("podSelector", {}).get("matchLabels") == own
                    for rule in policy["spec"].get(side, [])
                    for peer in rule.get(peers, [])
                )
                if not is_open:
                    yield f"{name_of(policy)}: {side} keeps the nodes of {name_of(thing)} apart"


def picker_configs(things: Sequence[Object]) -> list[Object]:
    """Return the configurations of endpoint pickers that ConfigMaps hold."""
    return [
        document
        for thing in things
        if thing["kind"] == "ConfigMap"
        for key, text in thing.get("data", {}).items()
        if key.endswith(".yaml")
        for document in yaml.safe_load_all(text)
    ]


def picker_problems(config: Object) -> list[str]:
    """Each plugin that a profile or a source names is declared, and the default engine is configured."""
    declared = {plugin.get("name", plugin["type"]) for plugin in config["plugins"]}
    named = {value for path, value in walk(config) if path[-1:] == ("pluginRef",)}
    found = [f"picker: there is no plugin {name}" for name in sorted(named - declared)]
    for plugin in config["plugins"]:
        parameters = plugin.get("parameters", {})
        engines = {engine["name"] for engine in parameters.get("engineConfigs", [])}
        if "defaultEngine" in parameters and parameters["defaultEngine"] not in engines:
            found.append(f"picker: there is no engine {parameters['defaultEngine']}")
    return found
