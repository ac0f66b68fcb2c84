"""One sentence for each way in which the Hub fails.

Causes are told by the names of their classes: huggingface_hub has moved these classes between modules, and its HTTP
library went from requests to httpx to httpx2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import HubError, OutputError, RefineWrapError
from .disk import DOCUMENT
from .reference import FORM, Reference


class NotThereError(HubError):
    """The repository has no such file, or the cache lacks it without a way to ask."""


def damaged(reference: Reference, file: str, problem: str) -> HubError:
    return HubError(
        f"{file} of {reference.repo} came incomplete or changed: {' '.join(problem.split())}",
        "the file as it was published",
        _command(reference, file) + " --force-download",
    )


def _command(reference: Reference, file: str) -> str:
    return f"hf download {reference.repo} {file}" + (f" --revision {reference.revision}" if reference.revision else "")


def _causes(error: BaseException) -> tuple[list[BaseException], set[str], int | None]:
    """The chain of causes, the names of all their classes, and the first HTTP status among them."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    return causes, class_names(causes), next((status for status in map(_status, causes) if status is not None), None)


def class_names(errors: Iterable[BaseException]) -> set[str]:
    return {cls.__name__ for error in errors for cls in type(error).__mro__}


def download_failure(error: Exception, reference: Reference, file: str) -> RefineWrapError:
    repo, at = reference.repo, f"at revision {reference.revision!r}" if reference.revision else "at its default branch"
    causes, names, status = _causes(error)
    fetch = _command(reference, file)
    if "GatedRepoError" in names:
        return HubError(
            f"{repo} is gated: its owner has not given you access to {file}",
            "an account that has accepted its terms",
            f"accept them at {_endpoint()}/{repo}, then `hf auth login`",
        )
    missing = _missing_part(names, class_names([error]), reference)
    if missing == "revision":
        return HubError(
            f"{repo} has no revision {reference.revision!r}",
            "a branch, tag or commit of it",
            f"see {_endpoint()}/{repo}",
        )
    if missing == "file":
        hint = "is it an adapter's repository?" if file == DOCUMENT else f"see {_endpoint()}/{repo}"
        return NotThereError(f"{repo} has no file {file} {at}", None, hint)
    if missing == "repository":
        return HubError(
            f"There is no repository {repo} on {_endpoint()} that you can read, nor a folder of that name here",
            "the name of a public repository, or of one that your token can read",
            "check the name; for a private one: `hf auth login`",
        )
    if "OfflineModeIsEnabled" in names:
        return NotThereError(
            f"{file} of {repo} ({at}) is not in the cache, and HF_HUB_OFFLINE keeps the Hub from being asked",
            "the file in the cache, or a network",
            f"where there is a network: {fetch}",
        )
    if status in (401, 403):
        return HubError(
            f"{_endpoint()} refuses {file} of {repo} (HTTP {status})", "a token with read access", "hf auth login"
        )
    if _is_cut_short(causes, names):
        return damaged(reference, file, "the connection ended before the file did")
    if status is not None and status >= 400:
        return HubError(
            f"{_endpoint()} answers HTTP {status} for {file} of {repo} ({at})",
            "a Hub that answers",
            f"try again later: {fetch}",
        )
    if "FileMetadataError" in names:
        return HubError(
            f"{_endpoint()} does not answer as a Hub does for {file} of {repo}",
            "the Hub or a mirror of it",
            "check HF_ENDPOINT, proxy and firewall",
        )
    return _local_or_network_failure(error, causes, names, reference, file)


def _missing_part(names: set[str], raised: set[str], reference: Reference) -> str | None:
    """Which of repository, revision and file is missing, None if that is not what went wrong."""
    if "RevisionNotFoundError" in names:
        return "revision"
    if "EntryNotFoundError" in raised and "LocalEntryNotFoundError" not in raised:
        return "file"
    if "RepositoryNotFoundError" not in names:
        return None
    # Mirrors call every missing thing a missing repository: ask for the revision, then for the repository.
    if _answers(reference.repo, reference.revision or "main"):
        return "file"
    return "revision" if _answers(reference.repo, None) or _answers(reference.repo, "main") else "repository"


def _answers(repo: str, revision: str | None) -> bool:
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(repo, revision=revision)
    except Exception:  # whatever it is, the failure that is being explained stays as it is
        return False
    return True


_NETWORK = {
    "ConnectError",
    "ConnectionError",
    "TimeoutException",
    "Timeout",
    "NetworkError",
    "LocalEntryNotFoundError",
    "ProxyError",
}


def _local_or_network_failure(
    error: Exception, causes: Sequence[BaseException], names: set[str], reference: Reference, file: str
) -> RefineWrapError:
    repo = reference.repo
    if "HFValidationError" in names:
        return HubError(f"{reference} is not a place on the Hub: {_first_line(error)}", FORM)
    if names & _NETWORK:
        return NotThereError(
            f"{_endpoint()} cannot be reached, and {file} of {repo} is not in the cache",
            "a network, or the file in the cache",
            f"where there is a network: {_command(reference, file)}",
        )
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno is not None:
            return OutputError(
                f"{file} of {repo} cannot be written into the Hub's cache: {cause.strerror or cause}",
                "room and write rights there",
                "set HF_HOME to another folder",
            )
    return HubError(
        f"{file} of {repo} cannot be fetched: {type(error).__name__}: {_first_line(error)}",
        None,
        _command(reference, file),
    )


def _is_cut_short(causes: Sequence[BaseException], names: set[str]) -> bool:
    if names & {"RemoteProtocolError", "ChunkedEncodingError", "IncompleteRead", "ReadError"}:
        # The same error on the first request, before any file, is an endpoint that cannot be reached.
        return "LocalEntryNotFoundError" not in names
    return any("Consistency check failed" in str(cause) for cause in causes)


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:160]


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def push_failure(error: Exception, repo: str) -> HubError:
    _, names, status = _causes(error)
    came, endpoint = f"Nothing was pushed to {repo}", _endpoint()
    rights = "a token with write access to it"
    if "OfflineModeIsEnabled" in names:
        return HubError(f"{came}: HF_HUB_OFFLINE is set", "a network", "unset HF_HUB_OFFLINE")
    if "LocalTokenNotFoundError" in names or status == 401:
        return HubError(f"{came}: you are not logged in, or the token is not valid", rights, "hf auth login")
    if status == 403:
        return HubError(f"{came}: your token may not write there", rights, "hf auth login")
    if status == 404:
        return HubError(f"{came}: {endpoint} knows no such organisation, repository or branch", "org/name of your own")
    if status is not None:
        return HubError(f"{came}: {endpoint} answers HTTP {status}: {_first_line(error)}", None, "try again later")
    if names & (_NETWORK | {"RemoteProtocolError", "ReadError"}):
        return HubError(f"{came}: {endpoint} cannot be reached", "a network", "check the network and HF_ENDPOINT")
    return HubError(f"{came}: {type(error).__name__}: {_first_line(error)}")
