"""Logs of other people's runs, shortened: what each is, and the kind that must come first."""

# ruff: noqa: E501 - lines of logs are as long as they are

LOGS = {
    "the terminal was closed": (
        "terminal-closed",
        """\
W0920 09:10:41.194000 849 site-packages/torch/distributed/elastic/agent/server/api.py:719] Received 1 death signal, shutting down workers
W0920 09:10:41.195000 849 site-packages/torch/distributed/elastic/multiprocessing/api.py:900] Sending process 850 closing signal SIGHUP
Traceback (most recent call last):
  File "/env/lib/python3.11/site-packages/torch/distributed/run.py", line 896, in <module>
    main()
torch.distributed.elastic.multiprocessing.api.SignalException: Process 849 got signal: 1
""",
    ),
    "torch.load since 2.6": (
        "weights-only",
        """\
Traceback (most recent call last):
  File "/home/u/tune.py", line 73, in main
    state = torch.load("last.pt")
  File "/env/lib/python3.10/site-packages/torch/serialization.py", line 1494, in load
    raise pickle.UnpicklingError(_get_wo_message(str(e))) from None
_pickle.UnpicklingError: Weights only load failed. This file can still be loaded, to do so you have two options.
\t(1) In PyTorch 2.6, we changed the default value of the `weights_only` argument.
""",
    ),
    "a checkpoint of a compiled model": (
        "compile-prefix",
        """\
RuntimeError: Error(s) in loading state_dict for GPT:
\tMissing key(s) in state_dict: "emb.weight", "head.weight".
\tUnexpected key(s) in state_dict: "_orig_mod.emb.weight", "_orig_mod.head.weight".
""",
    ),
    "a GPU that is newer than torch": (
        "no-kernel-image",
        """\
Traceback (most recent call last):
  File "/env/lib/python3.12/site-packages/torch/nn/parallel/distributed.py", line 825, in __init__
    _verify_param_shape_across_processes(self.process_group, parameters)
torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.25.1
ncclUnhandledCudaError: Call to CUDA function failed.
Last error:
Cuda failure 'no kernel image is available for execution on the device'
""",
    ),
    "fewer tasks than ranks": (
        "rank-missing",
        """\
GPU available: True (cuda), used: True
Initializing distributed: GLOBAL_RANK: 1, MEMBER: 2/4
Initializing distributed: GLOBAL_RANK: 0, MEMBER: 1/4
slurmstepd: error: *** STEP 42.0 ON node3 CANCELLED AT 2024-11-04T11:00:00 DUE TO TIME LIMIT ***
""",
    ),
    "a broken link between GPUs": (
        "gpu-hardware",
        "RuntimeError: CUDA error: uncorrectable NVLink error detected during the execution\n"
        "CUDA kernel errors might be asynchronously reported at some other API call.\n",
    ),
    "cards that can't reach each other": (
        "ib-no-way",
        "host-1:10233 [5] ibvwrap.c:262 NCCL WARN Call to ibv_modify_qp failed with 110 Connection "
        "timed out, on dev mlx_0:1, curr state INIT, next state RTR\n",
    ),
    "a bus error": (
        "shm-full",
        """\
ERROR:torch.distributed.elastic.multiprocessing.api:failed (exitcode: -7) local_rank: 0 (pid: 108) of binary: /opt/conda/bin/python
Traceback (most recent call last):
  File "/opt/conda/lib/python3.10/site-packages/torch/distributed/launcher/api.py", line 250, in launch_agent
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
======================================================
train.py FAILED
------------------------------------------------------
Failures:
  <NO_OTHER_FAILURES>
------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2023-04-30_02:40:45
  rank      : 0 (local_rank: 0)
  exitcode  : -7 (pid: 108)
  traceback : Signal 7 (SIGBUS) received by PID 108
======================================================
""",
    ),
    "CUDA in the notebook": (
        "cuda-before-launch",
        """\
ValueError                                Traceback (most recent call last)
Cell In[30], line 12
---> 12 notebook_launcher(train, (), num_processes=2)
ValueError: To launch a multi-GPU training from your notebook, you need to avoid running any instruction using `torch.cuda` in any cell.
""",
    ),
    "a child of a process with CUDA": (
        "cuda-in-fork",
        """\
torch.multiprocessing.spawn.ProcessRaisedException:

-- Process 1 terminated with the following error:
Traceback (most recent call last):
  File "/env/lib/python3.11/site-packages/torch/cuda/__init__.py", line 420, in set_device
    torch._C._cuda_setDevice(device)
RuntimeError: CUDA error: initialization error
""",
    ),
    "nvidia-smi": (
        "all-ranks-on-gpu-0",
        """\
|    0   N/A  N/A      2695      C   python train.py      26167MiB |
|    0   N/A  N/A      2696      C   python train.py        871MiB |
|    1   N/A  N/A      2696      C   python train.py      25400MiB |
""",
    ),
    "out of memory in another rank": (
        "gpu-out-of-memory",
        """\
n1:3025:6048 [0] misc/socket.cc:49 NCCL WARN socketProgress: Connection closed by remote peer n1-ib<51159>
n1:3025:6048 [0] NCCL INFO misc/socket.cc:749 -> 6
n1:3028:6152 [3] include/alloc.h:178 NCCL WARN Cuda failure 'out of memory'
""",
    ),
    "the other machine is gone": (
        "peer-gone",
        """\
torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, remote process exited or there was a network error, NCCL version 2.21.5
ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.
Last error:
socketProgressOpt: Call to recv from 172.16.0.9<33759> failed : Connection reset by peer
""",
    ),
    "a notebook function to spawn": (
        "function-not-importable",
        """\
Traceback (most recent call last):
  File "<string>", line 1, in <module>
  File "/opt/conda/lib/python3.12/multiprocessing/spawn.py", line 132, in _main
    self = reduction.pickle.load(from_parent)
AttributeError: Can't get attribute 'foo' on <module '__main__' (<class '_frozen_importlib.BuiltinImporter'>)>
""",
    ),
    "memory, as Slurm tells it": (
        "out-of-memory",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0. Some of the step tasks have "
        "been OOM Killed.\nsrun: error: node17: task 2: Out Of Memory\n",
    ),
    "a checkpoint of other sizes": (
        "other-sizes",
        "RuntimeError: Error(s) in loading state_dict for DistributedDataParallel:\n"
        "        size mismatch for module.fc.weight: copying a param with shape "
        "torch.Size([1000, 512]) from checkpoint, the shape in current model is "
        "torch.Size([10, 512]).\n",
    ),
    "a launcher around a launcher": (
        "gpu-out-of-memory",
        """\
Traceback (most recent call last):
  File "/home/u/train.py", line 4, in main
    model.cuda()
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.
Traceback (most recent call last):
  File "/opt/conda/lib/python3.10/subprocess.py", line 526, in run
    raise CalledProcessError(retcode, process.args,
subprocess.CalledProcessError: Command '['/opt/conda/bin/python3.10', '-m', 'torch.distributed.run', '/tmp/_temp_x.py']' returned non-zero exit status 1.
""",
    ),
    "nothing but torchrun's last words": (
        "error-is-elsewhere",
        """\
E1129 14:42:39.141000 183 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1) local_rank: 1 (pid: 184) of binary: /env/bin/python
Traceback (most recent call last):
  File "/env/lib/python3.11/site-packages/torch/distributed/launcher/api.py", line 383, in launch_agent
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
train.py FAILED
------------------------------------------------------------
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 183)  (SIGTERM)
  traceback : Signal 15 (SIGTERM) received by PID 183
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : 1 (pid: 184)
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
============================================================
""",
    ),
    "the checker of this package": (
        "rank-did-not-come",
        """\
Traceback (most recent call last):
  File "/x/ddp_helpers/sanitizer/channel.py", line 96, in wait
    raise Gone(missing, why or "limit")
ddp_helpers.sanitizer.channel.Gone: limit: [0]

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/home/u/train.py", line 7, in main
    dist.barrier()
  File "/x/ddp_helpers/sanitizer/session.py", line 185, in found
    raise SanitizerError(finding)
ddp_helpers.sanitizer.session.SanitizerError: rank 0 did not come within 6 s
  rank 1: barrier at /home/u/train.py, line 7, in main
what to do: let every rank make the same calls in the same order
[rank-did-not-come]
""",
    ),
}
# texts of several ranks as torch marks them: the mark tells the rank whatever stands before it
MARKED = {
    "an iterator that ended": (
        "iterator-ended",
        """\
[rank1]: Traceback (most recent call last):
[rank1]:   File "/home/u/train.py", line 7, in main
[rank1]:     batch = next(batches)
[rank1]: StopIteration
[rank0]: Traceback (most recent call last):
[rank0]:   File "/home/u/train.py", line 7, in main
[rank0]:     dist.all_reduce(x)
[rank0]:   File "/env/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 3252, in all_reduce
[rank0]:     work.wait()
[rank0]: RuntimeError: [/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4751. This is typically caused by a remote worker crashing. GLHF!
""",
    ),
    "words of a lost peer that are not torch's": (
        "not-recognised",
        """\
[rank0]: Traceback (most recent call last):
[rank0]:   File "/home/u/train.py", line 7, in main
[rank0]:     dist.all_reduce(x)
[rank0]:   File "/env/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 3252, in all_reduce
[rank0]:     work.wait()
[rank0]: RuntimeError: [/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4751. This is typically caused by a remote worker crashing. GLHF!
[rank1]: Traceback (most recent call last):
[rank1]:   File "/home/u/data.py", line 31, in read
[rank1]:     raise RuntimeError(f"reading {url} failed: {error}")
[rank1]: RuntimeError: reading s3://b/k failed: Connection reset by peer
""",
    ),
    "two watchdogs": (
        "different-collective",
        """\
[rank1]:[E1030 03:19:32.584828663 ProcessGroupNCCL.cpp:616] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=215121, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600080 milliseconds before timing out.
[rank0]:[E1030 03:19:32.598350807 ProcessGroupNCCL.cpp:616] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=215122, OpType=BROADCAST, NumelIn=2, NumelOut=2, Timeout(ms)=600000) ran for 600093 milliseconds before timing out.
""",
    ),
}


def _marked(mark):
    return lambda log: "".join(f"{mark}{line}\n" for line in log.splitlines())


BAR = "Epoch 3:  12%|█▏        | 120/1000 [00:10<01:13, 12.0it/s, loss=0.3]"
# how the same log comes, and the rank that the form names, if any
FORMS = {
    "as it is": (lambda log: log, ""),
    "[rank1]: ": (_marked("[rank1]: "), "1"),
    "torchrun --tee": (_marked("[default1]:[rank1]: "), "1"),
    "torchrun --tee, without torch's mark": (_marked("[default1]:"), "1"),
    "srun -l": (_marked("1: "), "1"),
    "srun -l of many": (_marked(" 1: [rank1]: "), "1"),
    "mpirun": (_marked("[1,1]<stderr>:"), "1"),
    "a time, then the rank": (_marked("2025-06-24 17:29:06  [rank1]: "), "1"),
    "a time in brackets": (_marked("[2025-06-24 17:29:06,123] "), ""),
    "Kubernetes": (_marked("2025-06-24T17:29:06.1Z stdout F "), ""),
    "Kubernetes, then the rank": (
        _marked("2025-06-24T17:29:06.123456789Z stderr F [rank1]: "),
        "1",
    ),
    "GitHub's time": (_marked("2025-06-24T17:29:06.1234567Z "), ""),
    "Ray": (_marked("(RayTrainWorker pid=12, ip=10.0.0.2) "), ""),
    "Ray, then the rank": (_marked("(RayTrainWorker pid=12, ip=10.0.0.2) [rank1]: "), "1"),
    "docker compose": (_marked("trainer-1  | "), ""),
    "a quote": (_marked("> "), ""),
    "an indented paste": (_marked("    "), ""),
    "a bar in front": (lambda log: BAR + log, ""),
    "a bar in front of each line": (_marked(BAR), ""),
    "a bar that comes back": (lambda log: f"{BAR}\r{BAR}\r{log}", ""),
    "colours": (lambda log: "".join(f"\x1b[31m{x}\x1b[0m\n" for x in log.splitlines()), ""),
    "CRLF": (lambda log: log.replace("\n", "\r\n"), ""),
    "a logger's first line": (lambda log: f"2025-01-01 12:00:00,123 ERROR [mod] {log}", ""),
    "a logger's lines": (_marked("2025-01-01 12:00:00,123 ERROR [mod] "), ""),
    "loguru": (lambda log: f"2025-01-01 12:00:00.123 | ERROR    | mod:fn:12 - {log}", ""),
}
