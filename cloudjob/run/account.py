"""The account that the stages of a run fetch with: it speaks, waits and stops as its run folder does."""

from pathlib import Path
from typing import TYPE_CHECKING

from cloudjob.run.folder import RunFolder

if TYPE_CHECKING:  # requests is slow to import, and `plan` does not need it
    from cloudjob.copernicus.account import Account
    from cloudjob.copernicus.patience import Patience


def account(folder: RunFolder, urls: dict[str, str], place: Path, patience: "Patience") -> "Account":
    """`urls` are the addresses of the services by name; `place` is the folder that all who use the account share."""
    from cloudjob.copernicus.account import open_account
    from cloudjob.copernicus.session import Endpoints

    return open_account(
        Endpoints(**urls),
        folder=place,
        patience=patience,
        stopped=folder.stop_requested,
        said=folder.say,
        job=folder.job,
        lease_patience=folder.patience,
    )
