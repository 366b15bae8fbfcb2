"""cloudjob doctor: whether what a run needs is there, and what to do where it is not."""

import argparse
import time

from cloudjob.cli.context import open_run
from cloudjob.cli.progress import say
from cloudjob.errors import ItemError

_PATIENCE = 90.0  # seconds
_VISIT = 30.0  # seconds at most for each service


def command(arguments: argparse.Namespace) -> int:
    """cloudjob doctor --online: one line for each service of the Data Space; 4 where one of them is out of reach."""
    from cloudjob.config.acquisition import CopernicusConfig
    from cloudjob.copernicus import checkup
    from cloudjob.copernicus.account import open_account
    from cloudjob.copernicus.patience import Patience
    from cloudjob.copernicus.session import Endpoints, open_session

    config = open_run(arguments)[0].copernicus if arguments.config else CopernicusConfig()
    endpoints, patience, end = Endpoints(**config.urls()), Patience(retries=2, seconds=_PATIENCE), 0.0

    def late() -> bool:
        return time.monotonic() > end

    account = open_account(endpoints, folder=config.account(), patience=patience, stopped=late, said=say)
    session = open_session(endpoints, patience=patience, stopped=late)
    code, end = 0, time.monotonic() + _VISIT
    for finding in checkup.examine(session, endpoints, account, config.s3):
        print(f"{finding.service:9} {finding.host:42} {'' if finding.good else 'PROBLEM: '}{finding.words}", flush=True)
        code = code if finding.good else ItemError.exit_code
        end = time.monotonic() + _VISIT
    return code
