"""What the steps of `flows/nodes_flow.py` do: one stage that trains, over several nodes, between two runs of the main flow."""

import difflib
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from metaflow import current, metaflow_config
from metaflow.exception import MetaflowException

from artifacts_schema.base import Record
from artifacts_schema.config import SnapFusionConfig
from flows import stages
from flows.fetched import with_table_here
from flows.logs import configure_logging
from flows.parts import skipped
from flows.remote import RemoteCompute, RemoteRefused, resources_of
from flows.runtime import compute_of, pack, read_config, run_stage, store_of, unpack
from steps.files.errors import ConfigError, StoreError
from steps.stages.table import STAGES


class NodesRefused(MetaflowException):  # type: ignore[misc]
    """Shown by Metaflow without a traceback."""

    headline = "Training over several nodes refused"


class OneStage(RemoteCompute):
    """Resources of the step that trains are those of the stage that is named; of the others, the default."""

    def tables(self, config: SnapFusionConfig, steps: Any, arguments: Any) -> Mapping[str, Any]:
        """As `RemoteCompute`. Raises RemoteRefused for a deployment, NodesRefused for what cannot be trained so."""
        if {"step-functions", "argo-workflows"} & {*arguments} and "create" in arguments:
            raise RemoteRefused(
                "this flow is no workflow to deploy (Step Functions have no parallel steps, and a run names its stage): "
                "start it with `run --with kubernetes` or `run --with batch`"
            )
        said = " ".join(arguments).replace("=", " ").split()
        options = dict(zip(said, said[1:], strict=False))
        named = options.get("--stage", "default")
        if (
            "run" in arguments and "--stage" in options
        ):  # here, before anything starts, it is one clean message
            try:
                check(config, named, int(options.get("--nodes", "2")))
            except ConfigError as error:
                raise NodesRefused(str(error)) from None
            except ValueError:
                pass  # --nodes is no number, as Metaflow says next
        return {name: resources_of(config, named if name == "train" else "default") for name in steps}


def side_by_side(step: Any) -> Any:
    """Make a step one of `num_parallel` nodes: by @torchrun, which has all of them wait for each other, where Metaflow's
    datastore is one that it can use.
    """
    if metaflow_config.DEFAULT_DATASTORE == "local":
        from metaflow import parallel

        # Metaflow starts the other nodes of this machine by the name "python".
        os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", "")))
        return parallel(step)
    try:
        from metaflow import torchrun
    except ImportError:
        raise RemoteRefused(
            "the package metaflow-torchrun is not installed: pip install 'snapfusion-pipeline[cluster]'"
        ) from None
    return torchrun(step)


def check(config: SnapFusionConfig, stage: str, nodes: int) -> None:
    """Refuse what cannot be trained over so many nodes. Raises ConfigError."""
    trains = [name for name in STAGES if hasattr(getattr(config, name, None), "training")]
    if stage not in trains:
        close = difflib.get_close_matches(stage, trains, n=1, cutoff=0.5)
        what = "does not train" if stage in STAGES else "is no stage"
        hint = f"did you mean {close[0]}?" if close else "those that train: " + ", ".join(trains)
        raise ConfigError(f"--stage {stage} {what} in this configuration; {hint}")
    if stage in config.run.skip:
        raise ConfigError(f"--stage {stage} is in run.skip: there is nothing to train")
    if nodes < 1:
        raise ConfigError(f"--nodes must be at least 1, found {nodes}")
    if not config.store.cache:
        raise ConfigError(
            "store.cache is false: what is trained here would not be found by the run that goes on"
        )
    ranks = nodes * config.compute.processes
    if problem := getattr(config, stage).training.why_not_shared_by(ranks):
        raise ConfigError(
            f"{stage}.training." + problem.replace("compute.processes", "nodes * compute.processes")
        )


def start(flow: Any) -> None:
    """Find what the stage reads in the cache. Raises ConfigError, and StoreError naming the first stage that is missing."""
    config = read_config(flow)
    check(config, flow.stage, flow.nodes)
    flow.records = {name: pack(record) for name, record in inputs_of(config, flow.stage).items()}
    with socket.create_server(("", 0)) as free:
        flow.port = free.getsockname()[1]
    world = flow.nodes * config.compute.processes
    print(f"{flow.stage}: {flow.nodes} nodes, {world} processes; its inputs are in the cache")


def inputs_of(config: SnapFusionConfig, stage: str) -> dict[str, Any]:
    """Records of the stages that `stage` goes back to, by stage, as the run left them that was stopped before it."""

    def missing(context: Any, _: Any) -> Record:
        raise StoreError(
            f"{context.stage} is not in the cache of the store {store_of(config).root}, and {stage} needs it: run "
            f"flows/snapfusion_flow.py with this configuration until it comes to {stage}, stop it there, and start this "
            "again (the line above says what has changed, if it did run)"
        )

    found: dict[str, Any] = {"start": stages.start(config, prepare=missing)}
    for name in needed(config, stage):
        if name in config.run.skip:
            found[name] = skipped(name, found)
        else:
            here = with_table_here(config) if STAGES[name].measures else config
            found[name] = run_stage(STAGES[name], here, found, work=missing)
    return found


def needed(config: SnapFusionConfig, stage: str) -> list[str]:
    """The stages that `stage` goes back to, in the order in which they run."""
    pending, found = [stage], set()
    while pending:
        for place in STAGES[pending.pop()].places(config, "").values():
            name = place.partition(".")[0]
            if name and name not in found:
                found.add(name)
                pending.append(name)
    return [name for name in STAGES if name in found]


def train(flow: Any) -> None:
    """One node: the stage itself, or the ranks that it asks for."""
    configure_logging()
    from steps.inputs.context import configure_torch, select_device
    from steps.training.following import follow
    from steps.training.nodes import Team, leading

    config, place = read_config(flow), current.parallel
    if place.num_nodes == 1:
        _stage(flow, config)
    elif place.node_index == 0:
        with leading(place.main_ip, flow.port, place.num_nodes) as nodes:
            _stage(flow, config, nodes)
    else:
        compute = compute_of(config)
        configure_torch(compute)
        team = Team(compute.processes, compute.rank_timeout_s)
        device = select_device(compute)
        follow(place.main_ip, flow.port, place.node_index, place.num_nodes, team=team, device=device)


def _stage(flow: Any, config: SnapFusionConfig, nodes: Any = None) -> None:
    records = {name: unpack(record) for name, record in flow.records.items()}
    run_stage(STAGES[flow.stage], config, records, nodes=nodes)


def end(flow: Any) -> None:
    """Say what to do next."""
    print(
        f"{flow.stage} is in the cache: resume the run, or start it again with the same configuration; it finds it there"
    )
