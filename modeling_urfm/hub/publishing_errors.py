# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""What can go wrong on the way to the Hub: what is worth another try, what is not, and how it is said."""

import json
import re
from collections.abc import Iterator

from huggingface_hub import HfApi
from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import HFValidationError, validate_repo_id


# Conflicts are worth another look: somebody else committed, or we did and the answer was lost.
TRANSIENT_STATUSES = (408, 409, 412, 425, 429)
TAG = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.+-]*[A-Za-z0-9_+-])?")
LONGEST_WAIT = 120  # seconds, whatever a server asks for


class PublishingError(OSError):
    """Nothing, or not all, was published; the message says why, what stands on the Hub and what to do."""


def check_repo_id(repo_id: str) -> None:
    """ORG/NAME as the Hub takes it, else ValueError with the nearest id that it would take.

    >>> check_repo_id("my lab/urfm--base")
    Traceback (most recent call last):
    ...
    ValueError: 'my lab/urfm--base' is no id of a repository on the Hub (ORG/NAME). Did you mean 'my-lab/urfm-base'?
    """
    parts = repo_id.split("/")
    try:
        validate_repo_id(repo_id)
        if len(parts) == 2:
            return
    except HFValidationError:
        pass
    names = [re.sub(r"[^A-Za-z0-9_.-]+", "-", part) for part in parts if part]
    names = [re.sub(r"\.git$", "", re.sub(r"([-.])[-.]+", r"\1", name)).strip("-.") for name in names]
    names = [name for name in names if name] or ["urfm-base"]
    near = "/".join((names if len(names) > 1 else ["YOUR_NAME", *names])[-2:])[:96].rstrip("-.")
    raise ValueError(f"{repo_id!r} is no id of a repository on the Hub (ORG/NAME). Did you mean {near!r}?")


def check_tag(tag: str | None) -> None:
    """A name that git and the Hub take for a tag and that can't be taken for a branch or a commit, else ValueError."""
    if tag is None:
        return
    forbidden = tag in ("main", "HEAD") or tag.endswith(".lock") or ".." in tag or re.fullmatch("[0-9a-f]{7,40}", tag)
    if forbidden or not TAG.fullmatch(tag):
        near = re.sub(r"\.\.+", ".", re.sub(r"[^A-Za-z0-9_.+-]+", "-", tag.removesuffix(".lock"))).strip("-.") or "1"
        near = near if TAG.fullmatch(near) and near != tag and near not in ("main", "HEAD") else f"v-{near}"
        raise ValueError(f"{tag!r} is no name for a tag. Did you mean {near!r}?")


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from: the client wraps what happens in its threads."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error came from."""
    for part in chain(error):
        if isinstance(part, HfHubHTTPError) and part.response is not None:
            return part.response.status_code
    return None


def is_transient(error: BaseException, created: bool) -> bool:
    """Is it worth another try?

    Args:
        created: the repository was made a moment ago; it may not be found everywhere yet.
    """
    if any(isinstance(part, OfflineModeIsEnabled | PublishingError) for part in chain(error)):
        return False
    status = status_of(error)
    if status is not None:
        return status >= 500 or status in TRANSIENT_STATUSES or (status == 404 and created)
    for part in chain(error):
        # By name: the client brought another HTTP library in its second version.
        if any(base.__name__ == "TransportError" for base in type(part).__mro__):
            return True
        # An answer that isn't the Hub's, or was cut; a connection of the operating system.
        if isinstance(part, json.JSONDecodeError | FileMetadataError | ConnectionError | TimeoutError):
            return True
    return type(error) is RuntimeError  # what an upload in a thread ends with


def asked_to_wait(error: BaseException) -> float:
    """Seconds that the server asks for (`Retry-After`), 0 where it doesn't."""
    for part in chain(error):
        if isinstance(part, HfHubHTTPError) and part.response is not None:
            asked = part.response.headers.get("Retry-After", "").strip()
            return min(float(asked), LONGEST_WAIT) if asked.isdigit() else 0.0
    return 0.0


def in_a_line(error: BaseException) -> str:
    """What happened, in a line: the status and what the server says, or the innermost error of the connection."""
    for part in chain(error):
        if isinstance(part, HfHubHTTPError) and part.response is not None:
            said = " ".join((part.server_message or part.response.reason_phrase or "").split())
            return f"the server answered {part.response.status_code}" + (f" ({said[:300]})" if said else "")
    parts = list(chain(error))
    for part in parts:
        if isinstance(part, json.JSONDecodeError):
            return "the server's answer is no JSON, or was cut"
        if type(part).__name__ == "ConnectError":
            return f"it can't be reached ({' '.join(str(part).split())[:200]}): is there a network?"
        if any(base.__name__ == "TransportError" for base in type(part).__mro__):
            said = " ".join(str(part).split())[:200]
            return f"the connection broke ({type(part).__name__}{': ' * bool(said)}{said})"
    last = next((part for part in parts if str(part).strip()), parts[0])
    return f"{type(last).__name__}: {' '.join(str(last).split())[:300]}"


def explain(error: BaseException, repo_id: str, api: HfApi) -> str:
    """Why a publication can't go on, and what to do about it."""
    if isinstance(error, PublishingError):
        return str(error)
    status, organisation = status_of(error), repo_id.split("/")[0]
    if status == 401 or (status == 403 and not api.token):
        known = "the token is not known there" if api.token else "there is no token"
        return f"{known} ({api.endpoint}): log in with `hf auth login`, or set HF_TOKEN. {_said(error)}"
    if status == 403:
        return (
            f"no right to write to {organisation}: {_whose_token(api)} may not ({in_a_line(error)}). Use a token with the right "
            f"to write (`hf auth login`), or another organisation than {organisation}."
        )
    if status == 402:
        return f"the Hub asks for a payment: {in_a_line(error)}"
    if status == 413:
        return f"a file or the commit is too large for the server: {in_a_line(error)}"
    return in_a_line(error)


def _said(error: BaseException) -> str:
    return f"{in_a_line(error)[0].upper()}{in_a_line(error)[1:]}."


def _whose_token(api: HfApi) -> str:
    try:
        return f"the token of {api.whoami()['name']}"
    except Exception:  # only for the message: whatever goes wrong here, the error to tell is another
        return "your token"
