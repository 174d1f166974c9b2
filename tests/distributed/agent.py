"""The agent behind `torchrun`, for four processes that are forked where that is possible.

Twenty restarts of four processes would otherwise be eighty times the import of PyTorch.

    python agent.py CONFIG.toml NAME=VALUE …
"""

import multiprocessing
import signal
import sys

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from minillm.train.__main__ import main


def work(arguments):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork would keep the agent's own handler
    main(arguments)


if __name__ == "__main__":
    forks = "fork" in multiprocessing.get_all_start_methods() and sys.platform == "linux"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=4,
        max_restarts=40,
        monitor_interval=0.02,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork" if forks else "spawn",
    )
    elastic_launch(config, work)(sys.argv[1:])
