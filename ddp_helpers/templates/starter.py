"""Your training, on one process or on many: the first 60 lines are yours, the rest is done.

    python starter.py                                                  # one process
    torchrun --standalone --nproc_per_node=2 starter.py --epochs 10    # two; or a GPU each
    srun --ntasks-per-node=4 python starter.py --workers 4 --bf16

The same command goes on where the run in --run-folder was stopped, whatever stopped it.
"""

from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset, default_collate

DATA = Path(__file__).resolve().parent / "../../data/mnist_5k/mnist_5k.pt"
BETTER = ("accuracy", max)  # the one of metrics() that tells the best checkpoint; max or min
collate = default_collate  # a list of samples in, a batch out: replace it where lengths differ


class Shifted(Dataset):  # torch, random and NumPy may draw as they like
    def __init__(self, x: torch.Tensor, y: torch.Tensor, most: int):
        self.x, self.y, self.most = x, y, most

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int):
        shift = torch.randint(-self.most, self.most + 1, (2,)).tolist()
        return self.x[index, None].float().div(255).roll(shift, dims=(1, 2)), int(self.y[index])


def make_datasets():
    """The training set and the held-out set; a sample may be any nesting of tensors."""
    x, y, held_out_x, held_out_y = torch.load(DATA, weights_only=True)
    return Shifted(x, y, most=2), Shifted(held_out_x, held_out_y, most=0)


def make_model() -> nn.Module:
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 7 * 7, 10))


def loss(model, batch):
    """The sum of the losses, and what to divide it by: samples, tokens, or a sum of weights."""
    x, y = batch
    return nn.functional.cross_entropy(model(x).float(), y, reduction="sum"), len(y)


def metrics(model, batch):
    """Of the held-out set, beside the loss: names, each with a sum and what to divide it by."""
    x, y = batch
    return {"accuracy": ((model(x).argmax(dim=1) == y).sum(), len(y))}


def track(step: int, values: dict[str, float]):
    """On rank 0, with each line of log.csv: tell TensorBoard or W&B here."""


# ruff: noqa: E401, E402, I001
import argparse, contextlib, ctypes, fcntl, json, math, os, random, re, resource, signal, sys
import time, zipfile
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import torch  # again: an owner's part may go without
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

stop_asked = []  # signals that this rank got: torchrun and Slurm send some before they kill


def parse_args() -> argparse.Namespace:
    def at_least_1(text: str) -> int:
        if int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text} found, expected 1 or more")
        return int(text)

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--run-folder", type=Path, default="run", help="log.csv and checkpoints; it goes on there")
    add("--epochs", type=at_least_1, default=5)
    add("--global-batch-size", type=at_least_1, help="samples of a step; default: 32 for each rank")
    add("--batch-size-per-rank", type=at_least_1, default=32, help="at once; more are accumulated")
    add("--lr", type=float, default=2e-3)
    add("--weight-decay", type=float, default=0.01)
    add("--warmup", type=int, default=20, help="steps up to the full --lr")
    add("--decay-steps", type=at_least_1, help="steps until it is lowest; default: all epochs'")
    add("--clip", type=float, default=1.0, help="longest gradient; inf: any")
    add("--patience", type=at_least_1, help="end after so many epochs that are no better")
    add("--workers", type=int, default=0, help="processes of each rank that load samples")
    add("--bf16", action="store_true", help="compute in bfloat16 where that is safe")
    add("--compile", action="store_true", help="torch.compile: a slow start, then faster")
    add("--seed", type=int, default=0)
    add("--save-every", type=at_least_1, default=200, help="steps; each epoch is saved, too")
    add("--log-every", type=at_least_1, default=20, help="steps")
    return parser.parse_args()


def ask_slurm():
    """srun tells a process who it is in variables of its own: give them the usual names."""
    told = os.environ
    if "RANK" in told or "SLURM_STEP_NODELIST" not in told:  # torchrun's; or no rank of srun's
        return
    first = re.match(r"([^,\[]+)(?:\[(\w+))?", told["SLURM_STEP_NODELIST"])  # node[01-04],gpu7
    counts = re.findall(r"(\d+)(?:\(x\d+\))?", told["SLURM_STEP_TASKS_PER_NODE"])  # 4(x2),3
    told |= {"RANK": told["SLURM_PROCID"], "WORLD_SIZE": told["SLURM_NTASKS"]}
    told |= {"LOCAL_RANK": told["SLURM_LOCALID"], "LOCAL_WORLD_SIZE": max(counts, key=int)}
    told.setdefault("MASTER_ADDR", "".join(part or "" for part in first.groups()))
    told.setdefault("MASTER_PORT", str(20000 + int(told["SLURM_JOB_ID"]) % 10000))  # one each job


def join_ranks() -> torch.device:
    """Meet the other ranks, choose GPUs or the CPU together, and start the process group."""
    store, rank, ranks = dist.HashStore(), 0, 1  # nobody told this process of others
    if "RANK" in os.environ:
        store, rank, ranks = next(dist.rendezvous("env://", timeout=timedelta(minutes=10)))
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    if "OMP_NUM_THREADS" not in os.environ:  # under Slurm the cores may be this rank's share
        cores = os.environ.get("SLURM_CPUS_PER_TASK")
        torch.set_num_threads(int(cores or max(1, len(os.sched_getaffinity(0)) // local_ranks)))

    gpus = torch.cuda.device_count()
    index = local_rank if local_rank < gpus else 0  # only one is seen where Slurm gives one each
    mine = f"{os.uname().nodename} {torch.cuda.get_device_properties(index).uuid}" if gpus else ""
    store.set(f"gpu/{rank}", mine)
    found = [store.get(f"gpu/{other}").decode() for other in range(ranks)]
    own = all(found) and len(set(found)) == ranks  # each rank has one: the same answer on all
    if rank == 0 and any(found) and not own:
        print("note: not every rank has a GPU of its own, so all compute on the CPU", flush=True)
    if rank == 0 and own and gpus > local_ranks:
        print(f"note: {gpus} GPUs here, {local_ranks} of them used", flush=True)
    device = torch.device("cuda", index) if own else torch.device("cpu")
    if own:
        torch.cuda.set_device(device)
    how = {"device_id": device} if own else {}
    how |= {"rank": rank, "world_size": ranks, "store": dist.PrefixStore("starter", store)}
    dist.init_process_group("nccl" if own else "gloo", timeout=timedelta(minutes=10), **how)
    return device


def exchange(text: str) -> list[str]:
    """What each rank says, on all of them; torch's own exchange of objects needs NumPy."""
    said = torch.zeros(8192, dtype=torch.uint8)
    said[: len(text.encode())] = torch.tensor([*text.encode()], dtype=torch.uint8)
    said = said.to("cuda" if dist.get_backend() == "nccl" else "cpu")
    heard = [torch.empty_like(said) for _ in range(dist.get_world_size())]
    dist.all_gather(heard, said)
    return [bytes(each.tolist()).rstrip(b"\0").decode() for each in heard]


def on_rank_0(work: Callable, *args):
    """Rank 0 does it; where that fails, all ranks end."""
    problem = ""
    if dist.get_rank() == 0:
        try:
            work(*args)
        except (OSError, ValueError) as found:
            problem = f"error: {found}"[:2000]
    if told := exchange(problem)[0]:
        sys.exit(told)


def to(tree, device: torch.device):
    """A batch of any nesting, on the device."""
    if hasattr(tree, "to"):  # a tensor, or a batch class of your own
        return tree.to(device, non_blocking=True)
    if isinstance(tree, Mapping):
        return {key: to(value, device) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        parts = [to(value, device) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


def sums(tree) -> list[str]:
    """What tells one sample from another: the sum of each tensor in it."""
    if isinstance(tree, torch.Tensor):
        return [f"{tree.double().sum().item():.6g}"]
    parts = tree.values() if isinstance(tree, Mapping) else tree
    if not isinstance(tree, (Mapping, list, tuple)):
        return []
    return [each for part in parts for each in sums(part)]


def seed_draws(*parts: int) -> int:
    """What torch, random and NumPy draw next follows from these numbers alone."""
    seed = hash(parts) % 2**32  # of a tuple of ints it is the same in every process
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    return seed


class Drawn(Dataset):
    """What a sample draws follows from seed, epoch and index: not from its worker or a restart.

    Of torch's draws that holds on any number of ranks; random and NumPy are seeded anew for each
    batch only, which is three times cheaper.
    """

    def __init__(self, samples: Dataset, seed: int):
        self.samples, self.seed = samples, seed

    def __getitems__(self, keys: list[tuple[int, int]]) -> list:
        seed_draws(self.seed, *keys[0])
        found, seed_torch = [], torch.default_generator.manual_seed
        for epoch, index in keys:
            seed_torch(hash((self.seed, epoch, index)) % 2**32)
            found.append(self.samples[index])
        return found


class Batches:
    """This rank's part of each step, in pieces that fit. Steps are alike on any number of ranks."""

    epoch = done = 0  # `done`: samples of this epoch that all ranks together have had

    def __init__(self, samples: int, step: int, piece: int, seed: int):
        self.samples, self.step, self.piece, self.seed = samples, step, piece, seed

    def steps(self, done: int) -> Iterator[tuple[list[range], int]]:
        """For each step this rank's places in the epoch's order, in pieces; and the step's end."""
        while done < self.samples:
            begin, done = done, done + self.step
            if self.samples - done < max(self.step / 2, dist.get_world_size()):
                done = self.samples  # a small rest joins the last step
            mine = range(begin + dist.get_rank(), done, dist.get_world_size())
            pieces = math.ceil(len(mine) / self.piece)
            yield [mine[number::pieces] for number in range(pieces)], done

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        draws = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**32)
        order = torch.randperm(self.samples, generator=draws).tolist()
        for pieces, _ in self.steps(self.done):
            yield from ([(self.epoch, order[place]) for place in piece] for piece in pieces)


def start_worker(_: int):
    """A stop signal to all processes is for the ranks, which still need this one for a while."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))


class RunFolder:
    """args.json, log.csv, and the checkpoints newest.pt, previous.pt and best.pt; rank 0 writes."""

    def __init__(self, path: Path):
        self.path, self.newest = path, path / "newest.pt"

    def open(self, args: argparse.Namespace):
        """Keep other runs out, and see that the newest checkpoint is whole."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock, self.csv = (self.path / "lock").open("a"), (self.path / "log.csv").open("a")
        try:
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise ValueError(f"{self.path} is in use by another run: give another") from problem
        (self.path / "args.json").write_text(json.dumps(vars(args), default=str, indent=1))
        previous = self.path / "previous.pt"
        if previous.exists() and not self.newest.exists():
            os.replace(previous, self.newest)  # it was killed between two renames
        if not self.newest.exists():
            return
        try:
            if part := zipfile.ZipFile(self.newest).testzip():  # torch.load misses a flipped bit
                raise ValueError(f"wrong checksum of {part}")
            size = self.load()["at"]["log_size"]
        except OSError:
            raise  # it may pass
        except Exception as problem:  # torch raises many kinds
            way_out = f"mv {self.path}/previous.pt {self.newest}, or give another --run-folder"
            raise ValueError(f"can't read {self.newest}: {short(problem)}: {way_out}") from problem
        os.truncate(self.csv.name, min(size, self.csv.tell()))  # what comes after it comes again

    def load(self) -> dict:
        return torch.load(self.newest, map_location="cpu", weights_only=True, mmap=True)

    def save(self, name: str, content: dict):
        """Write beside it, read it back, rename: nobody finds half a file, or one of no use."""
        unfinished = self.path / f"{name}.tmp"
        content["at"]["log_size"] = self.csv.tell()
        try:
            with unfinished.open("wb") as stream:
                torch.save(content, stream)
                stream.flush()
                os.fsync(stream.fileno())  # else a power cut may leave the name on an empty file
            torch.load(unfinished, map_location="cpu", weights_only=True, mmap=True)
        except Exception as problem:  # torch raises many kinds
            unfinished.unlink(missing_ok=True)
            raise ValueError(
                f"could not save {name}: {short(problem)}; the last stays"
            ) from problem
        if name == "newest.pt" and self.newest.exists():
            os.replace(self.newest, self.path / "previous.pt")
        os.replace(unfinished, self.path / name)

    def log(self, at: dict, values: dict[str, float], more: str = ""):
        place = f"{at['step']},{at['epoch']}"
        self.csv.writelines(f"{place},{name},{value:.6g}\n" for name, value in values.items())
        self.csv.flush()
        told = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        print(f"epoch {at['epoch']}  step {at['step']}  {told}  {more}".rstrip(), flush=True)
        track(at["step"], values)


def short(problem: BaseException) -> str:
    """Of the first cause, such as a full disk, the line that tells most."""
    while problem.__context__:
        problem = problem.__context__
    told = re.search("Unsupported[^\n]*|[^\n]+", str(problem))
    return told[0] if told else type(problem).__name__


def lr_factor(step: int, warmup: int, steps: int) -> float:
    """Up in a line over the first `warmup` steps, then down half a cosine to 0.01 at `steps`."""
    done = min(1.0, max(0, step - warmup) / max(1, steps - warmup))
    return min(1.0, (step + 1) / max(1, warmup)) * (0.505 + 0.495 * math.cos(math.pi * done))


class Telling(nn.Module):
    """The model, and what ranks tell each other of a step: it travels as one more gradient, in the
    message that DDP sends anyway. A message of its own costs a small model a tenth of its step."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.heard = nn.Parameter(torch.zeros(6))

    def __getattr__(self, name: str):
        """loss() may ask the model that DDP holds for more than forward()."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)

    def tell(self, total: torch.Tensor, count=0, stops: int = 0) -> torch.Tensor:
        """The same total, with a gradient for `heard`: the total, who found it not finite, ..."""
        mine, rank = total.detach(), dist.get_rank()
        bad = 1.0 - mine.isfinite().float()
        values = [mine.nan_to_num(0, 0, 0), bad, bad * rank, bad * rank**2]
        values += [torch.zeros_like(mine) + each for each in (count, stops)]
        values = torch.stack([value.to(self.heard.dtype) for value in values])
        return total + (self.heard * values * dist.get_world_size()).sum()  # DDP takes the mean

    def hear(self) -> torch.Tensor:
        """The sums over all ranks and pieces since the last step."""
        heard, self.heard.grad = self.heard.grad, None
        return heard.double()


class Training:
    """What a run is made of, and `at`: where it stands."""

    def __init__(self, args: argparse.Namespace, device: torch.device):
        self.args, self.device, self.folder = args, device, RunFolder(args.run_folder)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        on_rank_0(self.folder.open, args)
        if not (args.run_folder / "lock").exists():
            sys.exit(f"error: rank {self.rank} sees no {args.run_folder}: give one that all share")
        saved = self.folder.load() if self.folder.newest.exists() else {"at": {}}

        train_set, held_out = make_datasets()
        self.at = {"epoch": 1, "done": 0, "step": 0, "loss": 0.0, "count": 0.0, "ranks": self.ranks}
        self.at |= {"best": None, "best_epoch": 0, "samples": len(train_set), "seed": args.seed}
        seed_draws(args.seed)
        self.at["first"] = sums(held_out[0]) if len(held_out) else []
        for name in ("samples", "seed"):  # others make another run of it
            if saved["at"].get(name, self.at[name]) != self.at[name]:
                found = f"{name} {self.at[name]} found, {saved['at'][name]} in {self.folder.newest}"
                sys.exit(f"error: {found}: give that, or another --run-folder")
        if self.rank == 0 and saved["at"].get("first", self.at["first"]) != self.at["first"]:
            print("note: the first held-out sample is not that of before: other data?", flush=True)
        self.at |= saved["at"]
        if self.rank == 0 and saved["at"]:
            print(f"goes on in epoch {self.at['epoch']}, after step {self.at['step']}", flush=True)
            if self.ranks != self.at["ranks"]:
                what = "each step has the same samples; rounding and dropout differ"
                print(f"note: {self.ranks} ranks, {self.at['ranks']} before: {what}", flush=True)
        size = args.batch_size_per_rank
        step_size = args.global_batch_size or self.at.get("step_size", size * self.ranks)
        if (fewest := min(step_size, len(train_set))) < self.ranks:
            sys.exit(f"error: {fewest} samples in a step, expected 1 or more for each rank")
        self.batches = Batches(len(train_set), step_size, size, args.seed)
        self.loader = self.load(train_set, self.batches)
        mine = [(-1, index) for index in range(self.rank, len(held_out), self.ranks)]
        self.held_out = self.load(held_out, [mine[i : i + size] for i in range(0, len(mine), size)])
        self.steps = args.epochs * sum(1 for _ in self.batches.steps(0))
        # not anew from --epochs: more of them would lift a rate that has fallen already
        decay_steps = args.decay_steps or self.at.get("decay_steps", self.steps)
        self.at |= {"ranks": self.ranks, "step_size": step_size, "decay_steps": decay_steps}

        torch.set_float32_matmul_precision("high")  # TF32 where the GPU has it
        torch.manual_seed(args.seed)  # the same first weights on every rank
        self.model = make_model().to(device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True
        )
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        if saved["at"]:
            try:
                self.model.load_state_dict(saved["model"])
                self.optimizer.load_state_dict(saved["optimizer"])
            except (ValueError, RuntimeError) as problem:
                sys.exit(f"error: {self.folder.newest} is of another model: {problem}")
        self.telling = Telling(self.model).to(device)
        self.parallel = DistributedDataParallel(self.telling, gradient_as_bucket_view=True)
        self.forward = torch.compile(self.parallel) if args.compile else self.parallel
        self.settled = self.ranks < 3  # see settle()

    def load(self, samples: Dataset, batches) -> DataLoader:
        workers = self.args.workers
        return DataLoader(
            Drawn(samples, self.args.seed),
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=start_worker,
            pin_memory=self.device.type == "cuda",
        )

    def loss_of(self, batch, model=None) -> tuple:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bf16):
            found = loss(model or self.forward, batch)
        if not isinstance(found, tuple) or len(found) != 2:
            sys.exit(f"error: loss() gave {type(found).__name__}, expected a sum and its divisor")
        return found

    def settle(self, batch):
        """After its first backward DDP orders its buckets anew, and sums over three or more ranks
        round in another way: have that behind, so that a continued run is the same to the bit."""
        kept = [buffer.clone() for buffer in self.model.buffers()]
        self.telling.tell(self.loss_of(batch)[0]).backward()
        self.parallel.zero_grad()
        for buffer, was in zip(self.model.buffers(), kept, strict=True):
            buffer.copy_(was)
        self.settled = True

    def step(self, feed: Iterator, pieces: list[range]) -> torch.Tensor:
        """One step; gives the gradient's length, and what all ranks have told: see take_in()."""
        at = self.at
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * lr_factor(at["step"], self.args.warmup, at["decay_steps"])
        for number in range(len(pieces)):
            batch = to(next(feed), self.device)
            if not self.settled:
                self.settle(batch)
            seed = seed_draws(self.args.seed, at["step"], number, self.rank)  # for dropout
            if self.device.type == "cuda":
                torch.cuda.manual_seed(seed)
            last = number == len(pieces) - 1
            with contextlib.nullcontext() if last else self.parallel.no_sync():
                total, count = self.loss_of(batch)
                stops = len(stop_asked) if last else 0
                self.telling.tell(total, count, stops).backward()
        told = self.telling.hear()
        scale = self.ranks / told[4]
        for parameter in self.model.parameters():
            if parameter.grad is not None:  # from DDP's mean of the ranks' sums to the true mean
                parameter.grad.mul_(scale)
        length = nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return torch.cat((told, length.double()[None]))

    def take_in(self, told: torch.Tensor) -> bool:
        """Add up what the steps told, and end where it is not finite; whether a rank must stop."""
        loss, bad, ranks, squares, count, stops, norm = told.tolist()
        if bad or not math.isfinite(norm):
            who = f"loss of rank {ranks / bad:.0f}" if bad else "gradient"
            if bad * squares != ranks**2:  # they are not all of one rank
                who = "loss of several ranks"
            where = f"in epoch {self.at['epoch']}, at step {self.at['step']} or just before"
            sys.exit(
                f"error: the {who} is not finite {where}. Nothing was saved since; lower --lr?"
            )
        self.at["loss"] += loss
        self.at["count"] += count
        return stops > 0

    def save(self):
        states = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        on_rank_0(self.folder.save, "newest.pt", {**states, "at": self.at})

    def run_epoch(self) -> bool:
        """The steps of this epoch that are left; whether they were stopped."""
        at, args, gpu = self.at, self.args, self.device.type == "cuda"
        self.batches.epoch, self.batches.done = at["epoch"], at["done"]
        self.model.train()
        seed_draws(args.seed, at["epoch"], self.rank)  # the loader draws its workers' seeds
        feed, told, since, begin = iter(self.loader), 0, dict(at), time.perf_counter()
        for pieces, done in self.batches.steps(at["done"]):
            told = told + self.step(feed, pieces)
            at["step"], at["done"] = at["step"] + 1, done
            saves, logs = at["step"] % args.save_every == 0, at["step"] % args.log_every == 0
            if gpu and not (saves or logs or done == at["samples"] or at["step"] % 10 == 0):
                continue  # to look at a GPU's numbers is to wait for it
            stops, told = self.take_in(told), 0
            if logs and self.rank == 0:
                self.log_step(since, time.perf_counter() - begin)
                since, begin = dict(at), time.perf_counter()
            if saves or stops:
                self.save()
            if stops:
                return True
        return False

    def log_step(self, since: dict, seconds: float):
        at = self.at
        values = {"loss": (at["loss"] - since["loss"]) / (at["count"] - since["count"])}
        values |= {"lr": self.optimizer.param_groups[0]["lr"]}
        values |= {"samples_per_second": (at["done"] - since["done"]) / seconds}
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        used = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else used
        values |= {"memory_gib": used / 2**30}
        left = (self.steps - at["step"]) * seconds / (at["step"] - since["step"])
        self.folder.log(at, values, f"left {timedelta(seconds=round(left))}")

    def finish_epoch(self):
        """Evaluate; keep the weights if they are the best; the next epoch is due."""
        at, found = self.at, self.evaluate()
        if BETTER[0] not in found:
            sys.exit(f"error: metrics() gave {sorted(found)}, and BETTER asks for {BETTER[0]!r}")
        if self.rank == 0:
            self.folder.log(at, {"train_loss": at["loss"] / at["count"], **found})
        best, value = at["best"], found[BETTER[0]]
        if math.isfinite(value) and (best is None or BETTER[1](value, best) != best):
            at |= {"best": value, "best_epoch": at["epoch"]}
            on_rank_0(self.folder.save, "best.pt", {"model": self.model.state_dict(), "at": at})
        at |= {"epoch": at["epoch"] + 1, "done": 0, "loss": 0.0, "count": 0.0}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The held-out set's loss and metrics: each sample counts once, on one rank."""
        for buffer in self.model.buffers():  # BatchNorm's statistics: rank 0's are the saved ones
            dist.broadcast(buffer, 0)
        self.model.eval()
        sums = {}
        for batch in self.held_out:
            batch = to(batch, self.device)
            pairs = {"held_out_loss": self.loss_of(batch, self.model), **metrics(self.model, batch)}
            for name, (total, count) in pairs.items():
                pair = torch.tensor([float(total), float(count)], dtype=torch.float64)
                sums[name] = sums.get(name, 0) + pair
        told = exchange(json.dumps({name: pair.tolist() for name, pair in sums.items()}))
        pairs = {}  # a small set leaves some ranks without a batch, and so without names
        for name, pair in (item for each in told for item in json.loads(each).items()):
            pairs[name] = pairs.get(name, 0) + torch.tensor(pair, dtype=torch.float64)
        return {name: (total / count).item() for name, (total, count) in pairs.items()}

    def run(self) -> int:
        """Train to the end, or until a rank was asked to stop; the exit code."""
        at, args = self.at, self.args
        while at["epoch"] <= args.epochs:
            if self.run_epoch():
                if self.rank == 0:
                    print("stopped and saved; the same command goes on from there", flush=True)
                return os.EX_TEMPFAIL  # 75: try again
            self.save()  # now: an evaluation may be long, and be cut off
            self.finish_epoch()
            if args.patience and at["epoch"] - 1 - at["best_epoch"] >= args.patience:
                break
        if self.rank == 0 and at["best_epoch"]:
            print(f"best {BETTER[0]} {at['best']:.4f} in epoch {at['best_epoch']}", flush=True)
        return 0


@record
def main():
    args = parse_args()
    for stop in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(stop, lambda number, _: stop_asked.append(number))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # if torchrun is killed, so is this rank
    ask_slurm()
    device = join_ranks()
    try:
        code = Training(args, device).run()
        dist.barrier()  # leave together: a rank that goes first can make others abort
    finally:  # after an error NCCL would wait in there for the others
        if device.type == "cpu" or sys.exc_info()[0] is None:
            dist.destroy_process_group()
    sys.exit(code)


if __name__ == "__main__":
    main()
