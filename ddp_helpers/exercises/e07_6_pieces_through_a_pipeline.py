"""A pipeline's forward: each piece goes on as soon as it is through a stage."""

import time

import torch
import torch.distributed as dist

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import by_rank, expect

EXERCISE = Exercise(
    title="Pieces through a pipeline",
    name="run_pipeline",
    task="Rank r has stage r of a net in world_size stages: `stage(piece)` gives a tensor of the "
    "same form. `pieces` is a list of micro-batches; on rank 0 they are the input, on the others "
    "tensors of the same form to receive into. Send each piece to the next rank as soon as it is "
    "through, so that all stages work at once. The last rank returns the list of outputs.",
    hints=(
        "One loop over the pieces: receive, compute, send. Rank 0 receives nothing, the last rank "
        "sends nothing.",
        "dist.recv(tensor, src=rank - 1) waits until the piece is there; dist.send gives it on.",
        "A rank that receives all pieces before it computes lets the others wait. So does one "
        "that computes all before it sends.",
    ),
    lesson="This is GPipe's forward; the time at its two ends is the bubble.",
    minutes=15,
)
PIECES, SECONDS = 4, 0.05  # what a stage takes


def starter(stage, pieces):
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    if rank > 0:
        for piece in pieces:
            dist.recv(piece, src=rank - 1)
    outputs = [stage(piece) for piece in pieces]
    if rank < last:
        for output in outputs:
            dist.send(output, dst=rank + 1)
    return outputs


def solution(stage, pieces):
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    outputs = []
    for piece in pieces:
        if rank > 0:
            dist.recv(piece, src=rank - 1)
        outputs.append(stage(piece))
        if rank < last:
            dist.send(outputs[-1], dst=rank + 1)
    return outputs


def on_rank(answer, size):
    rank, world = dist.get_rank(), dist.get_world_size()
    inputs = [torch.randn(size) for _ in range(PIECES)]
    factors = by_rank(lambda _: torch.rand(()) + 1)
    times, sent = [], []

    def stage(piece):
        sent.append(len([call for call in calls if call.name != "recv"]))
        began = time.time_ns()
        time.sleep(SECONDS)
        times.append((began, time.time_ns()))
        return piece * factors[rank] + rank

    pieces = [piece.clone() if rank == 0 else torch.zeros(size) for piece in inputs]
    with watched() as calls:
        outputs = answer(stage, pieces)
    sent_in_all = len([call for call in calls if call.name != "recv"])
    seen = [None] * world
    dist.all_gather_object(seen, times)
    if len(times) != PIECES:
        raise NotYet(
            f"rank {rank} of {world} called its stage {len(times)} times, expected once for each "
            f"of {PIECES} pieces"
        )
    if rank == world - 1:
        wanted = inputs
        for each in range(world):
            wanted = [piece * factors[each] + each for piece in wanted]
        outputs = list(outputs) if isinstance(outputs, tuple | torch.Tensor) else outputs
        if not isinstance(outputs, list) or len(outputs) != PIECES:
            raise NotYet(f"the last rank returned {outputs!r:.80}, expected {PIECES} tensors")
        for number, piece in enumerate(wanted):
            expect(outputs[number], piece, f"output {number}")
    if rank > 0 and times[0][0] >= seen[rank - 1][-1][1]:
        raise NotYet(
            f"the outputs are right, but rank {rank} of {world} began when rank {rank - 1} had "
            f"finished all {PIECES} pieces: nobody worked at the same time"
        )
    late = [number for number, count in enumerate(sent) if count < number]
    if rank == world - 1 or not late or sent_in_all < PIECES:  # a thread's would not be seen
        return
    if seen[rank + 1][0][0] < times[-1][1]:  # else the next rank says that all came at the end
        raise NotYet(
            f"the outputs are right, but rank {rank} of {world} works on piece {late[0]} before "
            f"piece {late[0] - 1} is on its way: send each one as soon as it is through"
        )


def check(ranks):
    ranks.run(on_rank, 2, 3)
    ranks.run(on_rank, 3, 2)


def receives_all_first(stage, pieces):
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    if rank > 0:
        for piece in pieces:
            dist.recv(piece, src=rank - 1)
    outputs = []
    for piece in pieces:
        outputs.append(stage(piece))
        if rank < last:
            dist.send(outputs[-1], dst=rank + 1)
    return outputs


def sends_its_input(stage, pieces):
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    outputs = []
    for piece in pieces:
        if rank > 0:
            dist.recv(piece, src=rank - 1)
        outputs.append(stage(piece))
        if rank < last:
            dist.send(piece, dst=rank + 1)
    return outputs


def all_at_once(stage, pieces):
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    whole = torch.stack(pieces)
    if rank > 0:
        dist.recv(whole, src=rank - 1)
    whole = stage(whole)
    if rank < last:
        dist.send(whole, dst=rank + 1)
    return list(whole)


def last_only(stage, pieces):
    return solution(stage, pieces)[-1]


def nobody_sends(stage, pieces):
    if dist.get_rank() > 0:
        dist.recv(pieces[0], src=dist.get_rank() - 1)
    return [stage(piece) for piece in pieces]


def without_waiting(stage, pieces):
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    coming = [dist.irecv(piece, src=rank - 1) for piece in pieces] if rank > 0 else []
    outputs, going = [], []
    for number, piece in enumerate(pieces):
        if coming:
            coming[number].wait()
        outputs.append(stage(piece))
        if rank < last:
            going.append(dist.isend(outputs[-1], dst=rank + 1))
    for work in going:
        work.wait()
    return outputs


WRONG = (
    Wrong(receives_all_first, "nobody worked at the same time"),
    Wrong(sends_its_input, "on rank 1 of 2, output 0 is"),
    Wrong(all_at_once, "called its stage 1 times"),
    Wrong(last_only, "the last rank returned"),
    Wrong(nobody_sends, "did not end within"),
)
ALSO_RIGHT = (without_waiting,)
STARTER_SAYS = "nobody worked at the same time"
