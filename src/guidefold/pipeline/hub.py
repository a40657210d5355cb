"""The hub: why a repository cannot be reached now, found out by one short question."""

from __future__ import annotations

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from guidefold.ground import compat

HUB_SECONDS = 10.0


def why_unreachable(hub_id: str) -> str | None:
    """Contact the hub once; return why the repository is unreachable, or None."""
    try:
        HfApi().model_info(hub_id, timeout=HUB_SECONDS)
    except RepositoryNotFoundError:
        return "the hub has no such repository, or does not show it without a login"
    except HfHubHTTPError:
        return None  # a mirror may serve files without this interface
    except HFValidationError:
        return "no repository of the hub can have this name"
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set, and it was not downloaded before"
    except compat.network_errors():
        return f"no connection to {constants.ENDPOINT}, and it was not downloaded before"
    return None
