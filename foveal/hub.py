"""Files of models on the Hugging Face Hub.

``hf-hub:owner/name`` names a model repository, ``hf-hub:owner/name@revision`` one of its revisions. Only the files of
`FILES` are downloaded, so nothing of a repository is run or unpickled. ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and
``HF_HUB_OFFLINE`` hold as for every program that uses huggingface_hub.

Example:
    >>> split_name("hf-hub:owner/name@v1"), on_hub("runs/demo")
    (('owner/name', 'v1'), False)
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from foveal.errors import ConfigError, RunError, StorageError

PREFIX = "hf-hub:"

FILES = ("config.json", "model.safetensors", "exits.json", "README.md")
"""Files of a repository that are read."""

TIMEOUT = 5.0
"""Seconds to wait for the Hub to answer at all."""


def on_hub(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a repository of the Hub."""
    return os.fspath(path).startswith(PREFIX)


def split_name(path: str) -> tuple[str, str]:
    """Repository and revision.

    Raises:
        ConfigError: this cannot be the name of a repository.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repo, _, revision = path.removeprefix(PREFIX).partition("@")
    with suppress(HFValidationError):
        validate_repo_id(repo)
        if repo.count("/") == 1 and ".." not in revision:
            return repo, revision or "main"
    raise ConfigError(f"{path}: is no repository of the Hugging Face Hub; write {PREFIX}owner/name")


def endpoint() -> str:
    """Address of the Hub."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT") or constants.ENDPOINT


def reachable(url: str) -> bool:
    """Whether a server answers. True with a proxy, because only a request can tell."""
    address = urlsplit(url)
    if getproxies():
        return True
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname, port), timeout=TIMEOUT).close()
    except OSError:
        return False
    return True


def can_ask() -> bool:
    """Whether the Hub may be asked and answers."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and reachable(endpoint())


def download(path: str) -> Path:
    """Download the model of a repository into the cache, or take it from there if the Hub cannot be reached.

    Args:
        path: ``hf-hub:owner/name``.

    Returns:
        The folder.

    Raises:
        ConfigError: this cannot be the name of a repository.
        RunError: there is no such repository, or no model in it; or the Hub cannot be reached and the model is not in
            the cache.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    repo, revision = split_name(path)
    # A folder with copies: links of the usual cache lead out of the folder, and `Run` does not follow such links.
    folder = Path(constants.HF_HOME) / "foveal" / repo.replace("/", "--") / revision.replace("/", "--")
    complete = all((folder / name).is_file() for name in FILES[:2])
    if not can_ask():
        if complete:
            return folder
        raise RunError(f"{path}: the Hugging Face Hub cannot be reached; connect, or give the folder of a run")
    try:
        with _quiet():
            snapshot_download(
                repo, revision=revision, local_dir=folder, allow_patterns=list(FILES), endpoint=endpoint()
            )
    except HfHubHTTPError as error:
        raise RunError(f"{path}: {_reason(error)}; check the name, and log in if it is private") from error
    except (OSError, ValueError) as error:
        if complete:
            return folder
        raise RunError(f"{path}: cannot be downloaded ({_first_line(error)}); try again") from error
    if not all((folder / name).is_file() for name in FILES[:2]):
        raise RunError(f"{path}: has no {FILES[0]} or no {FILES[1]}, so it is no model of foveal; check the name")
    return folder


def upload(folder: Path, repo: str, *, private: bool = False, message: str = "Upload model") -> str:
    """Upload all files of a folder into a repository, which is created if it does not exist.

    Args:
        folder: the folder.
        repo: ``owner/name``.
        private: whether a new repository is private.
        message: message of the commit.

    Returns:
        The address of the repository.

    Raises:
        ConfigError: this cannot be the name of a repository.
        StorageError: the Hub cannot be reached, or refuses the upload.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    repo, _ = split_name(repo)
    if not can_ask():
        raise StorageError(f"{repo}: the Hugging Face Hub cannot be reached, nothing was pushed; connect and try again")
    api = HfApi(endpoint=endpoint())
    try:
        with _quiet():
            api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        raise StorageError(
            f"{repo}: cannot be pushed ({_reason(error)}); log in by hf auth login with a token that may write"
        ) from error
    except (OSError, ValueError) as error:
        raise StorageError(f"{repo}: cannot be pushed ({_first_line(error)}); try again") from error
    return f"{endpoint()}/{repo}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and warnings of huggingface_hub; an error follows where one is due."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    log, off = logging.getLogger("huggingface_hub"), are_progress_bars_disabled()
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        disable_progress_bars()
        yield
    finally:
        log.setLevel(level)
        if not off:
            enable_progress_bars()


def _reason(error: Exception) -> str:
    """What the Hub answered, in a few words."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    known = {401: "not logged in, or no such repository", 403: "not allowed", 404: "no such repository or revision"}
    return known.get(status or 0) or f"the Hub answered {status or _first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")[:200] or type(error).__name__
