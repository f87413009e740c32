# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Bring a repository of the Hub to what is to stand there, whatever the network does.

A publication is a synchronisation: look at what is there, upload the large files that differ, then change everything in one
commit. A repository therefore holds the old version or the new one, never a config that points to weights that are missing.
After an error the next try looks again first, so that nothing is sent twice and an answer that was lost does no harm.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_session, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from .publishing_errors import (
    PublishingError,
    asked_to_wait,
    check_repo_id,
    check_tag,
    explain,
    in_a_line,
    is_transient,
    status_of,
)
from .publishing_look import etags, fingerprints, look, repository
from .staging import Publication


logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between tries; each pause is twice the one before
SILENCE = 120.0  # seconds without a byte after which a connection counts as dead; the client itself would wait for ever


@dataclass
class Published:
    """What stands on the Hub now.

    Attributes:
        url: the repository's page. commit: its sha. tag: that points to this commit, or None.
        sent: names of files that differed and were sent. unchanged: names that were there already.
        removed: names that an older version had left.
    """

    url: str
    commit: str
    sent: list[str]
    unchanged: list[str]
    removed: list[str]
    tag: str | None = None


@dataclass
class _Known:
    """What the tries of one publication know: what stood there, what was sent, and whether a commit may have happened."""

    looked: bool = False
    created: bool = False
    before: str | None = None
    commit: str | None = None
    in_doubt: bool = False
    sent: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def publish(
    publication: Publication,
    *,
    private: bool = True,
    tag: str | None = None,
    message: str | None = None,
    attempts: int = 5,
    progress: bool = True,
) -> Published:
    """Send a publication to the Hub: only what differs, in one commit; nothing where nothing does.

    Args:
        publication: as `staging.stage` made it.
        private: of a repository that is made now; one that is there stays as it is.
        tag: to point to the result. One that is there must point to this very content: a tag is never moved.
        message: of the commit.
        attempts: tries in all, when servers answer 5xx or 429, connections are cut or somebody commits in between. The
            client itself tries single requests several times within each.
        progress: show bars and say why there is another try.

    Raises:
        ValueError: an id or a tag that the Hub would not take (the nearest is named), or no files.
        FileNotFoundError: a file that is not there.
        PublishingError: offline, no right, a tag that points elsewhere, or all attempts failed. What stands on the Hub then
            is said; the same call goes on from there.
    """
    check_repo_id(publication.repo_id)
    check_tag(tag)
    if not publication.files:
        raise ValueError(f"There is nothing to publish as {publication.repo_id}.")
    api, known = HfApi(token=get_token()), _Known()
    if constants.is_offline_mode():
        raise PublishingError(
            "HF_HUB_OFFLINE=1 (or TRANSFORMERS_OFFLINE) is set: unset it to publish. Nothing was sent."
        )
    ours = fingerprints(publication.files, progress)
    message = message or f"Publish {publication.kind}" + (f" {tag}" if tag else "")
    with _bars(progress), _usual_timeout():
        for attempt in range(1, attempts + 1):
            try:
                return _synchronise(api, publication, ours, private, tag, message, known, progress)
            except Exception as error:
                _end_silence()
                if not is_transient(error, known.created):
                    text = explain(error, publication.repo_id, api)
                    raise PublishingError(f"{text} {_standing(api, publication, known)}") from error
                if attempt == attempts:
                    raise PublishingError(
                        f"{attempts} attempts have failed at {api.endpoint}, the last because {in_a_line(error)}. "
                        f"{_standing(api, publication, known)} The same command goes on from here."
                    ) from error
                pause = max(min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE), asked_to_wait(error))
                if progress:
                    logger.warning("%s; try %d of %d in %.0f s", in_a_line(error), attempt + 1, attempts, pause)
                time.sleep(pause)
    raise ValueError(f"attempts {attempts} must be at least 1.")


def _synchronise(api, publication, ours, private, tag, message, known: _Known, progress: bool) -> Published:
    """One try: look, commit what differs, tag."""
    _end_silence()
    where = {"repo_id": publication.repo_id, "repo_type": publication.repo_type}
    info = repository(api, **where)
    if info is None:
        _create(api, publication, private, known)
        info = repository(api, **where)
    there = look(api, **where, info=info, ours=ours, progress=progress)
    if info is not None and not known.looked and not known.created:
        _check_visibility(publication, info, private, bool(there.changed))
    before = info.sha or None if info is not None else None
    if not known.looked:  # what the first look finds is what is sent, however many tries it takes
        known.looked, known.sent, known.removed = True, there.changed, there.stale
    known.before, known.in_doubt = before, False
    differs = bool(there.changed or there.stale)
    tagged = repository(api, **where, revision=tag) if tag is not None and before is not None else None
    if tagged is not None and (differs or tagged.sha != before):
        names = there.changed + there.stale
        what = (
            f"this differs from it ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
            if names
            else "that is not main"
        )
        raise PublishingError(
            f"the tag {tag} of {publication.repo_id} stands for commit {tagged.sha[:8]}, and {what}: a tag is never moved. "
            "Take another name."
        )
    commit = _commit(api, publication, there, before, message, known) if differs else before
    known.commit = commit
    if tag is not None and tagged is None:
        _tag(api, publication, tag, commit)
    unchanged = [name for name in ours if name not in set(known.sent)]
    prefix = constants.REPO_TYPES_URL_PREFIXES.get(publication.repo_type, "")
    url = f"{api.endpoint}/{prefix}{publication.repo_id}"
    return Published(url, commit, known.sent, unchanged, known.removed, tag)


def _create(api: HfApi, publication: Publication, private: bool, known: _Known) -> None:
    """Make the repository.

    Raises:
        PublishingError: the name is taken by something that we can't see.
    """
    sdk = {"space_sdk": "gradio"} if publication.repo_type == "space" else {}
    try:
        # Without exist_ok: with it, the client expects more of a 409 than all servers send.
        api.create_repo(publication.repo_id, repo_type=publication.repo_type, private=private, **sdk)
    except Exception as error:
        if status_of(error) != 409:
            known.created = is_transient(error, False)  # it may have been made, and the answer was lost
            raise
        if not known.created and repository(api, publication.repo_id, publication.repo_type) is None:
            raise PublishingError(
                f"the name {publication.repo_id} is taken, and your token can't see what is there: take another name."
            ) from error
    known.created = True


def _check_visibility(publication: Publication, info, private: bool, sends: bool) -> None:
    """Images of patients never go to a public place by default; of other things it is said."""
    is_private = getattr(info, "private", None)
    if private and is_private is False and sends:
        text = f"{publication.repo_id} is public already, and what is sent to it will be"
        if publication.kind == "corpus":
            raise PublishingError(f"{text}: say --public (private=False) if that is meant.")
        logger.warning("%s.", text)
    elif not private and is_private:
        logger.warning("%s stays private: who may see it is changed in its settings on the Hub.", publication.repo_id)


def _commit(api, publication, there, parent: str | None, message: str, known: _Known) -> str:
    """Upload and commit; the sha. Large files go first and are seen by nobody before the commit."""
    operations = [CommitOperationAdd(name, publication.files[name]) for name in there.changed]
    operations += [CommitOperationDelete(name, is_folder=False) for name in there.stale]
    known.in_doubt = True
    # The client takes a parent only in git's form; a server of somebody else may name its commits otherwise.
    parent = parent if parent and constants.REGEX_COMMIT_OID.fullmatch(parent) else None
    done = api.create_commit(
        publication.repo_id, operations, commit_message=message, repo_type=publication.repo_type, parent_commit=parent
    )
    known.commit, known.in_doubt = done.oid, False
    found = etags(
        there.changed, api=api, repo_id=publication.repo_id, repo_type=publication.repo_type, commit=done.oid,
        progress=False,
    )  # fmt: skip
    if missing := [name for name, etag in found.items() if etag is None]:
        raise PublishingError(
            f"the Hub left out {', '.join(missing[:5])}: does a .gitignore in {publication.repo_id} name it? Remove that."
        )
    return done.oid


def _tag(api: HfApi, publication: Publication, tag: str, commit: str) -> None:
    where = {"repo_id": publication.repo_id, "repo_type": publication.repo_type}
    try:
        api.create_tag(**where, tag=tag, revision=commit)
    except HfHubHTTPError as error:
        if status_of(error) != 409:
            raise
        tagged = repository(api, **where, revision=tag)
        if tagged is None:  # a conflict over something else: worth another try
            raise
        if tagged.sha != commit:  # made by somebody else in this very moment
            raise PublishingError(f"the tag {tag} was made by somebody else, for another commit.") from error


def _standing(api: HfApi, publication: Publication, known: _Known) -> str:
    """What is on the Hub now, as far as it can be known."""
    if known.commit is not None:
        return f"{publication.repo_id} holds the new version (commit {known.commit[:8]})."
    if known.in_doubt:
        try:
            info = repository(api, publication.repo_id, publication.repo_type)
            known.in_doubt = info is not None and info.sha != known.before
        except Exception:  # the server still doesn't answer: then it can't be known
            pass
    if known.in_doubt:
        return f"{publication.repo_id} holds the old version or the new one, whole: the last answer was lost."
    if not known.looked:
        return "Nothing was sent."
    if known.before is None or known.created:
        return f"{publication.repo_id} is there, but holds nothing of it yet."
    return f"{publication.repo_id} holds what it held before (commit {known.before[:8]})."


def _end_silence() -> None:
    """The client waits for ever by default: let a silent connection end. It is made anew after errors, so say it again."""
    get_session().timeout = SILENCE


@contextmanager
def _usual_timeout() -> Iterator[None]:
    """The client is shared by the whole process: leave it as it was."""
    usual = get_session().timeout
    try:
        yield
    finally:
        get_session().timeout = usual


@contextmanager
def _bars(progress: bool) -> Iterator[None]:
    """Without `progress`, the client's bars are off, too."""
    if progress or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
