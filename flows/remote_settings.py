"""Settings of Metaflow and AWS without which Metaflow's engines end in a traceback: asked for before they start."""

import os
from collections.abc import Sequence

from metaflow import metaflow_config

_ADVICE = "set it, or run `metaflow configure aws`"
_BATCH = {
    "BATCH_JOB_QUEUE": "the job queue of AWS Batch",
    "ECS_S3_ACCESS_IAM_ROLE": "the role with which jobs reach S3",
}
_STEP_FUNCTIONS = {
    "SFN_IAM_ROLE": "the role of the state machine",
    "SFN_DYNAMO_DB_TABLE": "the table in which Step Functions keep the width of a foreach",
}


def check_settings(engine: str, arguments: Sequence[str], queues: Sequence[str | None]) -> list[str]:
    """One line for each setting that is missing; empty when the engine can be asked. `queues` are the steps' own."""
    if engine == "kubernetes":
        return [] if "--only-json" in arguments else _cluster()
    wanted = dict(_BATCH) | (_STEP_FUNCTIONS if "step-functions" in arguments else {})
    if queues and all(queues):
        del wanted["BATCH_JOB_QUEUE"]
    missing = [
        f"METAFLOW_{name} is not set, {what}: {_ADVICE}"
        for name, what in wanted.items()
        if not getattr(metaflow_config, name)
    ]
    return missing or _aws([queue or metaflow_config.BATCH_JOB_QUEUE for queue in queues], arguments)


def _cluster() -> list[str]:
    """A Kubernetes cluster is known; whether it answers is its own affair."""
    try:
        from kubernetes import config
    except ImportError:
        return ["the package kubernetes is not installed: pip install 'snapfusion-pipeline[cluster]'"]
    if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
        return []
    try:
        config.load_kube_config()
    except config.ConfigException as error:
        return [f"no Kubernetes cluster is configured ({error}): name one in KUBECONFIG or ~/.kube/config"]
    return []


def _aws(queues: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """AWS answers, and knows the queues."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError, NoRegionError

    try:
        batch = boto3.client("batch")
        known = batch.describe_job_queues(jobQueues=sorted(set(queues)))["jobQueues"]
        names = {queue[name] for queue in known for name in ("jobQueueName", "jobQueueArn")}
        if "step-functions" in arguments:
            boto3.client("stepfunctions").list_state_machines(maxResults=1)
    except NoRegionError:
        return ["AWS needs a region: set AWS_DEFAULT_REGION, or one in ~/.aws/config"]
    except (BotoCoreError, ClientError) as error:
        return [f"AWS cannot be asked: {error}"]
    missing = sorted(set(queues) - names)
    return [f"AWS Batch has no job queue {name!r} in this account and region" for name in missing]
