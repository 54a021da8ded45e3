"""A student to and from a model hub, with huggingface_hub; what goes wrong becomes one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steps.files.errors import SnapFusionError

_LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def publish(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload a student's folder to the model repository `owner/name`, which is made if there is none; its address.

    Files of the repository that the folder lacks are removed, all in one commit. Raises SnapFusionError.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise SnapFusionError(f"publishing {name} takes a token of the hub, found none; {_LOGIN}")
    api = HfApi()
    with _explained(name, api.endpoint):
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="A student of SnapFusion",
            delete_patterns=["*"],
        )
    return f"{api.endpoint}/{name}"


def fetch(name: str, folder: Path, *, revision: str | None = None) -> Path:
    """Download the model repository `owner/name` to `folder`: safetensors, configurations, source and card; no pickles.

    Raises SnapFusionError for a name or revision that there is not.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import ENDPOINT

    with _explained(name, ENDPOINT):
        snapshot_download(
            name,
            revision=revision,
            local_dir=folder,
            allow_patterns=["*.safetensors", "*.json", "*.txt", "*.py", "*.md", "*.png"],
        )
    return folder


@contextmanager
def _explained(name: str, endpoint: str) -> Iterator[None]:
    """Errors of the hub's client as sentences."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # of its HTTP client
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError as error:
        raise SnapFusionError(
            f"expected owner/name of a model repository, found {name!r}: {error}"
        ) from error
    except RepositoryNotFoundError as error:
        raise SnapFusionError(
            f"{endpoint} has no model repository {name}, or your token may not see it; check the name, or {_LOGIN}"
        ) from error
    except RevisionNotFoundError as error:
        raise SnapFusionError(f"the repository {name} has no such revision") from error
    except OfflineModeIsEnabled as error:
        raise SnapFusionError("HF_HUB_OFFLINE is set, so that no hub is asked; unset it") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        may_not = f"; the token may not write there: {_LOGIN}" if status in (401, 403) else ""
        raise SnapFusionError(f"{endpoint} refused {name} ({status}){may_not}") from error
    except (LocalEntryNotFoundError, HTTPError, ConnectionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SnapFusionError(f"{endpoint} could not be reached for {name}: {reason}") from error
