"""What a DataLoader's worker processes hand over, where there is no room to hand it over."""

import resource
import signal

import pytest
from torch.utils.data import DataLoader

from tasks.errors import ConfigurationError
from tasks.streaming import ObjectStorageDataset
from tests.shards import write_shards


def leave_no_room(_):
    """Let no file of this process grow, that of its shared memory neither."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))


@pytest.mark.timeout(60)
def test_a_batch_that_shared_memory_has_no_room_for_is_named_and_not_waited_for(tmp_path):
    write_shards(tmp_path, [100])
    dataset = ObjectStorageDataset(f"{tmp_path}/part*.csv", batch_size=50, epochs=1)
    loader = DataLoader(
        dataset, batch_size=None, num_workers=1, multiprocessing_context="fork", worker_init_fn=leave_no_room
    )
    with pytest.raises(ConfigurationError, match=r"a batch of 1200 bytes cannot be handed over .*give /dev/shm more"):
        list(loader)
