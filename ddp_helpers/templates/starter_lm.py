"""A GPT that learns from your text, on one process or on many: the first 100 lines are yours.

    python starter_lm.py                                                  # one process
    torchrun --standalone --nproc_per_node=2 starter_lm.py --epochs 30    # two; or a GPU each
    srun --ntasks-per-node=4 python starter_lm.py --bf16 --compile --peak-tflops 989

The same command goes on where the run in --run-folder was stopped, whatever stopped it. At the end
rank 0 writes a little; sense needs a longer text, a larger model, and GPUs.
"""

from pathlib import Path

import torch
from torch import nn

# or a .bin of tokens, two bytes each, as nanoGPT's
DATA = Path(__file__).resolve().parent / "../../data/austen/pride_and_prejudice.txt"
BETTER = ("held_out_loss", min)  # the one of evaluate() that tells the best checkpoint; max or min
CONTEXT = 128  # so many tokens the model sees at most
LAYERS, HEADS, WIDTH, DROPOUT = 4, 4, 128, 0.1
TOKENS = 256  # all kinds of tokens; up to 65536


def encode(text: bytes) -> list[int]:
    """The tokens of a line of the text, numbers below TOKENS: here its bytes."""
    return list(text)


def decode(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def make_datasets(file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens to train on, and the last tenth, held out. Of the file only what is used is read."""
    tokens = torch.from_file(str(file), size=file.stat().st_size // 2, dtype=torch.uint16)
    return tokens.tensor_split([len(tokens) * 9 // 10])


class Block(nn.Module):
    """Attention to the tokens before, then a small network for each token by itself."""

    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.to_qkv, self.to_out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        layers = nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        self.mlp = nn.Sequential(*layers, nn.Dropout(DROPOUT))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.to_qkv(self.norm_1(x)).unflatten(-1, (3, HEADS, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # each [batch, heads, tokens, WIDTH / HEADS]
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.to_out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    """Tokens [batch, n] to the scores of each one's next, [batch, n, TOKENS]."""

    def __init__(self):
        super().__init__()
        self.token, self.place = nn.Embedding(TOKENS, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)
        self.head.weight = self.token.weight  # one matrix, to read a token and to tell it
        for weight in self.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.token(x) + self.place.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def make_model() -> nn.Module:
    return GPT()


def flops_per_token(model: nn.Module) -> int:
    """Of forward and backward: 6 N + 12 L H Q T, for N weights that a token is multiplied by, L
    layers, H heads of width Q, T tokens of context (Chowdhery et al., PaLM, 2022, appendix B)."""
    weights = sum(weight.numel() for weight in model.parameters()) - model.place.weight.numel()
    return 6 * weights + 12 * LAYERS * HEADS * (WIDTH // HEADS) * CONTEXT


def loss(model, batch):
    """The sum of the losses, and what to divide it by: tokens. Where y is -100 there is none."""
    x, y = batch
    scores = model(x).float().flatten(0, 1)
    return nn.functional.cross_entropy(scores, y.flatten(), reduction="sum"), (y >= 0).sum()


@torch.no_grad()
def write(model: nn.Module, count: int, device: torch.device) -> str:
    """Let the model go on by itself from the end of a line."""
    tokens = torch.tensor([encode(b"\n")], device=device)
    for _ in range(count):
        chances = model(tokens[:, -CONTEXT:])[0, -1].float().softmax(dim=0)
        tokens = torch.cat([tokens, torch.multinomial(chances, 1)[None]], dim=1)
    return decode(tokens[0].tolist())


def track(step: int, values: dict[str, float]):
    """On rank 0, with each line of log.csv: tell TensorBoard or W&B here."""


# ruff: noqa: E401, E402, I001
import argparse, contextlib, ctypes, fcntl, json, math, os, random, re, resource, signal, sys
import time, zipfile, zlib
from array import array
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel

stop_asked = []  # signals that this rank got: torchrun and Slurm send some before they kill


def parse_args() -> argparse.Namespace:
    def at_least_1(text: str) -> int:
        if int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text} found, expected 1 or more")
        return int(text)

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--run-folder", type=Path, default="run", help="log.csv and checkpoints; it goes on there")
    add("--epochs", type=at_least_1, default=10)
    add("--global-batch-size", type=at_least_1, help="of a step, in CONTEXTs; default: 16 a rank")
    add("--batch-size-per-rank", type=at_least_1, default=16, help="at once; more are accumulated")
    add("--lr", type=float, default=2e-3)
    add("--weight-decay", type=float, default=0.1, help="of matrices")
    add("--warmup", type=int, default=20, help="steps up to the full --lr")
    add("--decay-steps", type=at_least_1, help="steps until it is lowest; default: all epochs'")
    add("--clip", type=float, default=1.0, help="longest gradient; inf: any")
    add("--patience", type=at_least_1, help="end after so many epochs that are no better")
    add("--bf16", action="store_true", help="compute in bfloat16 where that is safe")
    add("--compile", action="store_true", help="torch.compile: a slow start, then faster")
    add("--seed", type=int, default=0)
    add("--save-every", type=at_least_1, default=200, help="steps; each epoch is saved, too")
    add("--log-every", type=at_least_1, default=20, help="steps")
    add("--write", type=int, default=300, help="tokens, at the end")
    add("--peak-tflops", type=float, help="of one GPU, as its maker tells: to log the MFU, its use")
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


def seed_draws(*parts: int) -> int:
    """What torch, random and NumPy draw next follows from these numbers alone."""
    seed = hash(parts) % 2**32  # of a tuple of ints it is the same in every process
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    return seed


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


def fingerprint(file: Path) -> str:
    """Of the data: its size, and a checksum of its first 64 MiB."""
    with file.open("rb") as stream:
        return f"{file.stat().st_size}-{zlib.crc32(stream.read(1 << 26)):08x}"


def make_tokens(text: Path, tokens: Path):
    """The text's tokens, in a file that is whole or not there."""
    if tokens.exists():
        return
    unfinished = tokens.with_suffix(".tmp")
    with text.open("rb") as lines, unfinished.open("wb") as stream:
        for line in lines:
            numbers = encode(line)
            if numbers and not 0 <= min(numbers) <= max(numbers) < TOKENS:
                raise ValueError(f"encode() gave {max(numbers)}, expected 0 to {TOKENS - 1}")
            array("H", numbers).tofile(stream)
        stream.flush()
        os.fsync(stream.fileno())  # else a power cut may leave the name on an empty file
    os.replace(unfinished, tokens)


class Windows:
    """Samples: CONTEXT tokens each, and the token after each of them. The last may have fewer."""

    def __init__(self, tokens: torch.Tensor):
        self.tokens = tokens

    def __len__(self) -> int:
        return math.ceil((len(self.tokens) - 1) / CONTEXT)

    def batch(self, piece: list[tuple[int, int]]) -> list[torch.Tensor]:
        rows = torch.full((len(piece), CONTEXT + 1), -100)
        for row, (_, index) in zip(rows, piece, strict=True):
            found = self.tokens[index * CONTEXT : (index + 1) * CONTEXT + 1]
            row[: len(found)] = found
        if rows.max() >= TOKENS:
            sys.exit(f"error: token {rows.max()} in {DATA}, expected 0 to {TOKENS - 1}")
        return [rows[:, :-1].clamp(min=0), rows[:, 1:]]


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


class Training:
    """What a run is made of, and `at`: where it stands."""

    def __init__(self, args: argparse.Namespace, device: torch.device):
        self.args, self.device, self.folder = args, device, RunFolder(args.run_folder)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        on_rank_0(self.folder.open, args)
        if not (args.run_folder / "lock").exists():
            sys.exit(f"error: rank {self.rank} sees no {args.run_folder}: give one that all share")
        saved = self.folder.load() if self.folder.newest.exists() else {"at": {}}

        if not Path(DATA).is_file():
            sys.exit(f"error: no file {DATA}: let DATA name a text, or a .bin of its tokens")
        tokens, data = Path(DATA), fingerprint(Path(DATA))
        if tokens.suffix != ".bin":
            tokens = args.run_folder / f"tokens-{data}.bin"
            on_rank_0(make_tokens, Path(DATA), tokens)
        train_set, held_out = map(Windows, make_datasets(tokens))
        self.at = {"epoch": 1, "done": 0, "step": 0, "loss": 0.0, "count": 0.0, "ranks": self.ranks}
        self.at |= {"best": None, "best_epoch": 0, "samples": len(train_set), "seed": args.seed}
        self.at["data"] = data
        for name in ("data", "samples", "seed"):  # others make another run of it
            if saved["at"].get(name, self.at[name]) != self.at[name]:
                found = f"{name} {self.at[name]} found, {saved['at'][name]} in {self.folder.newest}"
                sys.exit(f"error: {found}: give that, or another --run-folder")
        self.at |= saved["at"]
        if self.rank == 0 and saved["at"]:
            print(f"goes on in epoch {self.at['epoch']}, after step {self.at['step']}", flush=True)
            if self.ranks != self.at["ranks"]:
                what = "each step has the same samples; rounding and dropout differ"
                print(f"note: {self.ranks} ranks, {self.at['ranks']} before: {what}", flush=True)
        size = args.batch_size_per_rank
        step_size = args.global_batch_size or self.at.get("step_size", size * self.ranks)
        fewest = min(step_size // self.ranks, len(train_set) // self.ranks, len(held_out))
        if fewest < 1:
            counts = f"{len(train_set)} samples and {len(held_out)} held out, {step_size} in a step"
            sys.exit(f"error: {counts}: expected 1 or more for each of {self.ranks} ranks")
        self.batches = Batches(len(train_set), step_size, size, args.seed)
        mine = [(-1, index) for index in range(self.rank, len(held_out), self.ranks)]
        self.train_set, self.held_out = train_set, held_out
        self.held_out_batches = [mine[i : i + size] for i in range(0, len(mine), size)]
        self.steps = args.epochs * sum(1 for _ in self.batches.steps(0))
        # not anew from --epochs: more of them would lift a rate that has fallen already
        decay_steps = args.decay_steps or self.at.get("decay_steps", self.steps)
        self.at |= {"ranks": self.ranks, "step_size": step_size, "decay_steps": decay_steps}

        torch.set_float32_matmul_precision("high")  # TF32 where the GPU has it
        torch.manual_seed(args.seed)  # the same first weights on every rank
        self.model = make_model().to(device)
        self.flops = flops_per_token(self.model)
        groups = [{"params": [], "weight_decay": decay} for decay in (0.0, args.weight_decay)]
        for weight in self.model.parameters():
            groups[weight.dim() >= 2]["params"].append(weight)  # biases and norms do not decay
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        if saved["at"]:
            try:
                self.model.load_state_dict(saved["model"])
                self.optimizer.load_state_dict(saved["optimizer"])
            except (ValueError, RuntimeError) as problem:
                sys.exit(f"error: {self.folder.newest} is of another model: {problem}")
        self.parallel = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        self.forward = torch.compile(self.parallel) if args.compile else self.parallel
        self.settled = self.ranks < 3  # see settle()

    def feed(self, windows: Windows, pieces) -> Iterator[list[torch.Tensor]]:
        """Batches on the device; a GPU computes while the next one is read."""
        for piece in pieces:
            batch = windows.batch(piece)
            if self.device.type == "cuda":
                batch = [part.pin_memory() for part in batch]
            yield [part.to(self.device, non_blocking=True) for part in batch]

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
        self.loss_of(batch)[0].backward()
        self.optimizer.zero_grad()
        for buffer, was in zip(self.model.buffers(), kept, strict=True):
            buffer.copy_(was)
        self.settled = True

    def step(self, feed: Iterator, pieces: list[range]) -> torch.Tensor:
        """One step; gives the gradient's length, the signals, the count, and each rank's loss."""
        at, told = self.at, torch.zeros(3 + self.ranks, dtype=torch.float64, device=self.device)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * lr_factor(at["step"], self.args.warmup, at["decay_steps"])
        for number in range(len(pieces)):
            batch = next(feed)
            if not self.settled:
                self.settle(batch)
            seed = seed_draws(self.args.seed, at["step"], number, self.rank)  # for dropout
            if self.device.type == "cuda":
                torch.cuda.manual_seed(seed)
            last = number == len(pieces) - 1
            with contextlib.nullcontext() if last else self.parallel.no_sync():
                total, count = self.loss_of(batch)
                told[2] += count
                told[3 + self.rank] += total.detach()
                if last:
                    told[1] = len(stop_asked)
                    telling = dist.all_reduce(told, async_op=True)  # while the backward computes
                total.backward()
        telling.wait()
        scale = self.ranks / told[2]
        for parameter in self.model.parameters():
            if parameter.grad is not None:  # from DDP's mean of the ranks' sums to the true mean
                parameter.grad.mul_(scale)
        told[0] = nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return told

    def take_in(self, told: torch.Tensor) -> bool:
        """Add up what the steps told, and end where it is not finite; whether a rank must stop."""
        norm, stops, count, *losses = told.tolist()
        finite = [math.isfinite(each) for each in losses]
        if not all(finite) or not math.isfinite(norm):
            who = f"loss of rank {finite.index(False)}" if not all(finite) else "gradient"
            where = f"in epoch {self.at['epoch']}, at step {self.at['step']} or just before"
            sys.exit(
                f"error: the {who} is not finite {where}. Nothing was saved since; lower --lr?"
            )
        self.at["loss"] += sum(losses)
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
        feed = self.feed(self.train_set, self.batches)
        told, since, begin = 0, dict(at), time.perf_counter()
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
        values |= {"tokens_per_second": (at["count"] - since["count"]) / seconds}
        if self.args.peak_tflops:
            most = self.args.peak_tflops * 1e12 * self.ranks / self.flops
            values |= {"mfu": values["tokens_per_second"] / most}
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        used = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else used
        values |= {"memory_gib": used / 2**30}
        left = (self.steps - at["step"]) * seconds / (at["step"] - since["step"])
        self.folder.log(at, values, f"left {timedelta(seconds=round(left))}")

    def finish_epoch(self):
        """Evaluate; keep the weights if they are the best; the next epoch is due."""
        at, found = self.at, self.evaluate()
        if BETTER[0] not in found:
            sys.exit(f"error: evaluate() gave {sorted(found)}, and BETTER asks for {BETTER[0]!r}")
        if self.rank == 0:
            self.folder.log(at, {"train_loss": at["loss"] / at["count"], **found})
        best, value = at["best"], found[BETTER[0]]
        if math.isfinite(value) and (best is None or BETTER[1](value, best) != best):
            at |= {"best": value, "best_epoch": at["epoch"]}
            on_rank_0(self.folder.save, "best.pt", {"model": self.model.state_dict(), "at": at})
        at |= {"epoch": at["epoch"] + 1, "done": 0, "loss": 0.0, "count": 0.0}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The held-out loss and its perplexity: each token counts once, on one rank."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in self.feed(self.held_out, self.held_out_batches):
            total, count = self.loss_of(batch, self.model)
            sums += torch.stack([total.double(), count.double()])
        dist.all_reduce(sums)  # a small set leaves some ranks without a batch
        mean = (sums[0] / sums[1]).item()
        return {"held_out_loss": mean, "perplexity": math.exp(min(mean, 100))}

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
        if self.rank == 0 and args.write > 0:
            seed_draws(args.seed)
            print(write(self.model.eval(), args.write, self.device), flush=True)
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
