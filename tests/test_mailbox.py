"""What ranks tell whoever started them: nothing lost, nothing twice, and who is silent is named."""

import importlib.util
import socket

import pytest
import torch
from pydantic import ValidationError

from tasks.errors import ConfigurationError, NonFiniteLossError, RankError
from tasks.facts import RankTimes
from tasks.learning.checkpoints import Checkpoint
from tasks.parameters import TrainingParameters
from tasks.ranks.cluster import check_ranks, require_head
from tasks.ranks.group import STARTING_SECONDS, describe_silence
from tasks.ranks.mailbox import Mailbox, News
from tasks.ranks.passing import Reading
from tasks.training.states import State, Told, pack_state, unpack_state


def told(iteration):
    return Told(
        facts={"iteration": iteration}, after=State(iteration=iteration + 1, tensors=b"", facts={"condition": None})
    )


def times(rank):
    return RankTimes(
        rank=rank,
        host="node",
        process=1000 + rank,
        iterations=1,
        rows=8,
        wait_seconds=4.0,
        copy_seconds=1.0,
        compute_seconds=3.0,
        gather_seconds=2.0,
    )


def numbers(news):
    return [each.facts["iteration"] for each in news.told]


def test_ranks_begin_from_the_last_state_told_whether_it_was_taken_or_not():
    mailbox: Mailbox[Reading] = Mailbox(None)
    attempt, state = mailbox.begin(2)
    assert state is None
    mailbox.tell(attempt, told(0))
    assert numbers(mailbox.take()) == [0]
    mailbox.tell(attempt, told(1))
    again, state = mailbox.begin(2)
    assert state and state.iteration == 2
    mailbox.tell(attempt, told(2))  # by a rank that was killed: it was still on its way
    mailbox.tell(again, told(2))
    assert numbers(mailbox.take()) == [1, 2]
    assert numbers(mailbox.take()) == []


def test_the_first_error_is_the_one_that_is_heard_and_who_has_ended_is_silent_no_more():
    mailbox: Mailbox[Reading] = Mailbox(None)
    attempt, _ = mailbox.begin(2)
    mailbox.fail(NonFiniteLossError("first"))
    mailbox.fail(NonFiniteLossError("second"))
    assert str(mailbox.take().error) == "first"
    mailbox.end(attempt, times(1), Reading(device="cpu", stream=None, checks={}, damaged=()))
    assert list(mailbox.take().silent) == [0]
    assert list(mailbox.take().ended) == [1]


def test_all_have_ended_when_those_of_the_last_attempt_have_however_many_there_were_before():
    mailbox: Mailbox[Reading] = Mailbox(None)
    assert not mailbox.take().is_over
    reading = Reading(device="cpu", stream=None, checks={}, damaged=())
    attempt, _ = mailbox.begin(3)
    mailbox.end(attempt, times(2), reading)
    attempt, _ = mailbox.begin(2)
    mailbox.beat(times(2))  # of the attempt before: it was still on its way
    mailbox.end(attempt, times(0), reading)
    assert not mailbox.take().is_over
    mailbox.end(attempt, times(1), reading)
    news = mailbox.take()
    assert news.is_over and sorted(news.ended) == sorted(news.times) == [0, 1]


def test_no_more_ranks_than_there_are_may_be_the_fewest():
    with pytest.raises(ValidationError, match="fewest_ranks is 3, more than ranks, which is 2: give at most as many"):
        TrainingParameters(ranks=2, fewest_ranks=3)
    assert TrainingParameters(ranks=2, fewest_ranks=2).fewest_ranks == 2


def silence(*seconds):
    by_rank = dict(enumerate(seconds))
    return News(told=(), attempt=1, size=len(by_rank), silent=by_rank, times={1: times(1)}, ended={}, error=None)


@pytest.mark.parametrize(
    ("seconds", "described"),
    [
        ((0.5, 0.9), ""),
        ((0.5, 11.2), "nothing was heard of rank 1 (process 1001 on node) for 11 s"),
        ((11.0, 0.5, 12.0), "nothing was heard of rank 0, rank 2 for 11 s"),
        ((10.5, 11.2), ""),  # Ray starts them again
        ((STARTING_SECONDS + 11, STARTING_SECONDS + 12), "nothing was heard of rank 0, rank 1 (process 1001 on node)"),
        ((), ""),
    ],
)
def test_a_rank_is_named_that_is_silent_while_others_are_heard(seconds, described):
    found = describe_silence(silence(*seconds), 10)
    assert found.startswith(described) and bool(found) == bool(described)


def test_a_rank_is_busy_while_it_waits_for_data_and_not_while_it_waits_for_others():
    assert times(0).busy_seconds == 6.0


def test_a_state_is_passed_on_to_the_last_bit():
    tensors = {"w": torch.tensor([[1 / 3], [1e-300]], dtype=torch.float64), "optimizer.0.step": torch.tensor(3.0)}
    back = unpack_state(pack_state(Checkpoint(7, tensors, {"learning_rate": 0.1, "condition": None})))
    assert (back.iteration, back.facts) == (7, {"learning_rate": 0.1, "condition": None})
    assert back.tensors.keys() == tensors.keys()
    assert all(back.tensors[name].equal(tensor) for name, tensor in tensors.items())


def test_ranks_without_ray_or_by_its_client_are_refused_before_anything_is_started(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ConfigurationError, match="RAY_ADDRESS is 'ray://head:10001': a run over ranks is started on"):
        check_ranks(2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigurationError, match=r"ranks is 2, and Ray is not installed here: pip install 'shardline\["
    ):
        check_ranks(2)
    check_ranks(1)


def test_a_cluster_that_is_not_there_is_named_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "{}:{}".format(*server.getsockname())
        require_head(address)
    with pytest.raises(RankError, match=f"no Ray cluster answers at {address} .Connection refused.: start it, or"):
        require_head(address)
    require_head("auto")
