"""Models of the public hub, brought here file by file: the part of `huggingface_hub` that an import needs.

Only the hub that this gateway is set to (HF_ENDPOINT) is asked, with the user's token or with none, never with the
gateway's own. What may be loaded is taken: safetensors, configuration, tokenizers; no pickles and no code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from trainer.gateway.errors import GatewayError, invalid, not_found

_PUBLIC = "https://huggingface.co"
_REPO = re.compile(r"/(?P<repo>[\w.-]+/[\w.-]+)(?:/tree/(?P<revision>[\w.-]+))?/?")
_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja", ".md"})
_MOST_FILES = 500


def locate(url: str) -> tuple[str, str]:
    """(repository, revision) of a page of the hub. Raises INVALID_ARGUMENT for a URL that is none."""
    parts, hosts = urlsplit(url), {urlsplit(_PUBLIC).netloc, urlsplit(_endpoint()).netloc}
    match = _REPO.fullmatch(parts.path)
    if parts.netloc not in hosts or parts.scheme not in ("https", urlsplit(_endpoint()).scheme) or match is None:
        raise invalid(
            f"huggingFaceUrl: got {url[:200]!r}; expected {_PUBLIC}/ORGANISATION/NAME, with /tree/REVISION after it "
            "where it is not main",
            field="huggingFaceUrl",
        )
    return match["repo"], match["revision"] or "main"


def fetch(url: str, folder: Path, *, token: str | None, tell: Callable[[int, int], None]) -> str:
    """Bring the model at `url` into `folder`; returns the commit. tell(done, all) files.

    Raises NOT_FOUND, PERMISSION_DENIED or UNAVAILABLE with what the hub says.
    """
    # Slow to load, and only an import of a model needs it: the gateway starts without.
    from huggingface_hub import HfApi, hf_hub_download  # noqa: PLC0415
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, revision = locate(url)
    try:
        api = HfApi(endpoint=_endpoint(), token=token or False)
        info = api.model_info(repo, revision=revision)
        names = [one.rfilename for one in info.siblings or []]
        wanted = [name for name in names if Path(name).suffix in _SUFFIXES and "/" not in name]
        if len(wanted) > _MOST_FILES:
            raise invalid(f"huggingFaceUrl: {repo} has {len(wanted)} files; at most {_MOST_FILES} are taken")
        commit = info.sha or revision
        for done, name in enumerate(wanted):
            tell(done, len(wanted))
            hf_hub_download(repo, name, revision=commit, local_dir=folder, endpoint=_endpoint(), token=token or False)
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError) as error:
        if isinstance(error, GatedRepoError):
            raise GatewayError(
                "PERMISSION_DENIED", f"{repo}: the hub asks for a licence agreement; agree to it there, and keep a "
                "token in the secret hf-token",
            ) from error  # fmt: skip
        raise not_found(f"{repo}@{revision}", "look at the page on the hub") from error
    except HfHubHTTPError as error:
        raise GatewayError("UNAVAILABLE", f"{repo}: the hub answered: {str(error)[:200]}") from error
    except OSError as error:
        raise GatewayError("UNAVAILABLE", f"{repo}: the hub cannot be reached ({type(error).__name__})") from error
    return commit


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", _PUBLIC).rstrip("/")
