"""Adapters and files on the Hugging Face Hub: find, fetch, push."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from .. import __version__
from ..errors import CheckpointError, HubError
from ..resources import file_digest, known_backbone, shipped_weights, verify_file
from .adapter import Adapter
from .card import is_our_card, model_card
from .disk import BACKBONE, CARD, DOCUMENT, TENSORS, check_is_adapter, difference, load_adapter, read_document
from .failures import NotThereError, class_names, damaged, download_failure, push_failure
from .reference import Reference, is_repo_name, parse_reference

TRAINED = "backbone.json"
"""Beside the weights of a trained backbone: what they are."""
_FILE_SUFFIXES = {".safetensors", ".pth", ".pt", ".ckpt", ".pkl", ".bin", ".json", ".yaml", ".yml", ".zip"}


def resolve(source: str | Path, revision: str | None = None) -> Path:
    """The local folder of an adapter: a folder itself, or a repository on the Hub.

    Of a repository, `adapter.json`, `adapter.safetensors`, `README.md` (and `backbone.safetensors` where `adapter.json`
    lists it) are fetched into the Hub's cache, all of one commit, and checked by size and SHA-256. Nothing is fetched
    for a folder that exists, nor for text that looks like a path: it starts with `.`, `/` or `~`, or ends like a file.

    Args:
        source: folder, `shipped:NAME` for one that comes with the package, `org/name`, or `hf://org/name@revision`.
        revision: branch, tag or commit on the Hub.

    Raises:
        CheckpointError: there is no such folder, or what came is no adapter.
        HubError: the repository, revision or a file cannot be had, or came incomplete.
    """
    text = str(source)
    if text.startswith("shipped:"):
        return shipped_weights(text.removeprefix("shipped:")).parent
    if not text.startswith("hf://"):
        path = Path(text).expanduser()
        if path.is_dir():
            if revision is not None:
                raise HubError(
                    f"Revision {revision!r} is given for the local folder {path}",
                    "a revision with a Hub repository only",
                    f"hf://{text} for the repository of that name" if is_repo_name(text) else None,
                )
            return path
        like_a_path = isinstance(source, Path) or path.suffix.lower() in _FILE_SUFFIXES or not is_repo_name(text)
        if like_a_path or path.exists():
            check_is_adapter(path)
        text = f"hf://{text}"
    reference = parse_reference(text)
    if reference.path is not None:
        raise HubError(f"{text} names a file", "an adapter's repository: hf://org/name@revision")
    if revision is not None and reference.revision not in (None, revision):
        raise HubError(f"Two revisions are given: {text} and {revision!r}", "one of them")
    return _fetch_adapter(Reference(reference.repo, None, revision or reference.revision))


def _fetch_adapter(reference: Reference) -> Path:
    document_path = _download(reference, DOCUMENT)
    folder = document_path.parent
    # The cache names the folder of a snapshot by its commit. The other files are asked for by it: a push in between
    # must not mix two versions.
    exact = Reference(reference.repo, None, folder.name)
    document = read_document(document_path)
    for name in document["files"]:
        path = _download(exact, name, asked=reference)
        problem = difference(name, path.stat().st_size, file_digest(path), document)
        if problem is not None:
            raise damaged(reference, name, problem)
    with contextlib.suppress(NotThereError):  # a card is for people; nothing is loaded from it
        _download(exact, CARD, asked=reference)
    return folder


def fetch_file(reference: str) -> Path:
    """Fetch one file from the Hub into its cache: `hf://org/name/path/to/file@revision`.

    `HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_HOME` and tokens are huggingface_hub's own. A file that the weights manifest
    lists is checked against its size and SHA-256, unless another revision than the listed one is asked for by name.

    Raises:
        HubError: it cannot be had (each cause has its own sentence), or came incomplete or changed.
    """
    place = parse_reference(reference)
    if place.path is None:
        raise HubError(f"{reference} names a repository", "a file in it: hf://org/name/path/to/file@revision")
    path = _download(place, place.path)
    entry = known_backbone(place.repo, place.path)
    if entry is not None and place.revision in (None, "main", entry.get("revision")):
        try:
            verify_file(path, entry)
        except CheckpointError as error:
            raise damaged(place, place.path, f"{error.came}; the manifest says {error.expected}") from None
    return path


def _download(reference: Reference, file: str, *, asked: Reference | None = None) -> Path:
    """One file into the Hub's cache. `asked` is what the user named, for messages, where `reference` is more exact."""
    from huggingface_hub import hf_hub_download

    try:
        if asked is None:  # the other files of a repository follow one that was just fetched
            _check_connection(reference, file)
        return Path(hf_hub_download(reference.repo, file, revision=reference.revision))
    except Exception as error:  # huggingface_hub raises many kinds, and those of its HTTP library, which changes
        raise download_failure(error, asked or reference, file) from error


def _check_connection(reference: Reference, file: str) -> None:
    """Fail at once without a network: for a file that is not cached, `hf_hub_download` would try for 23 s."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(reference.repo, file, revision=reference.revision), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(reference.repo, file, revision=reference.revision))
    except Exception as error:
        # Other failures are left to the download: it meets them too, and tries again where that may help.
        if "ConnectError" in class_names([error]):
            raise


def push_folder(
    folder: str | Path, repo_id: str, *, private: bool = False, revision: str | None = None, message: str | None = None
) -> str:
    """Upload an adapter or a trained backbone to the Hub as one commit; repository and branch are made if missing.

    Only their own files go: `adapter.safetensors`, `adapter.json`, `README.md`, and `backbone.safetensors` if
    `adapter.json` lists it; of a backbone its weights, `backbone.json` and a card. The folder is checked first, as for
    loading. A card of ours is written anew with the repository's name in it.

    Args:
        folder: as written by `save_adapter`, or the folder `backbone` of a training run.
        repo_id: `org/name`.
        private: for a repository that is made by this; one that exists stays as it is.
        revision: branch to push to.
        message: of the commit.

    Returns:
        The address of the repository (of the branch, if one is given).

    Raises:
        CheckpointError: the folder is neither, or is damaged.
        HubError: malformed name, no network, no token, no rights, or the Hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(folder).expanduser()
    if not is_repo_name(repo_id):
        raise HubError(f"{repo_id!r} is not the name of a repository", "org/name")
    if (folder / TRAINED).is_file() and not (folder / DOCUMENT).exists():
        adapter = _trained_backbone(folder)
        names = [adapter.config["file"], TRAINED]
    else:
        adapter = load_adapter(folder)
        names = [TENSORS, DOCUMENT, *([BACKBONE] if BACKBONE in read_document(folder / DOCUMENT)["files"] else [])]
    card = folder / CARD
    readme = model_card(adapter, repo_id).encode() if is_our_card(card) else card.read_bytes()
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in names]
    operations.append(CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=readme))
    what = "trained backbone" if adapter.kind == "backbone" else f"{adapter.kind} adapter"
    message = message or f"Add a {what} (refine-wrap {__version__})"
    api = HfApi(library_name="refine-wrap", library_version=__version__)
    try:
        url = str(api.create_repo(repo_id, private=private or None, exist_ok=True))
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    except Exception as error:  # as in _download
        raise push_failure(error, repo_id) from error
    return url if revision is None else f"{url}/tree/{revision}"


def _trained_backbone(folder: Path) -> Adapter:
    """What the folder of a trained backbone records, without its tensors. Raises CheckpointError: it is damaged."""
    from ..backbone import load_backbone

    path = folder / TRAINED
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        file, weights = str(about["file"]), about["weights"]
        known = {key: about[key] for key in ("recipe", "scorers", "metrics", "data", "licence", "version")}
        record = {key: about.get(key) for key in ("family", "scale", "structure", "weights")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}", "as training wrote it") from None
    if Path(file).name != file or load_backbone(folder / file).weights_hash() != weights:
        raise CheckpointError(f"{folder}: {TRAINED} speaks of other weights than those of {file}", "files of one run")
    source = {"arch": about.get("arch"), "weights": file}
    return Adapter("backbone", {"file": file}, {}, {**record, "source": source}, **known)
