"""Words that the code puts together from pieces too small to be known alone, by catalogue."""

AT = "{file}, line {number}, in {function}"
STANDS = ("waited in {call} at", "waited for {child} at", "was at")
CHANGED = "weights changed after the wrap on {ranks}"
NOT_BY_A_STEP = "and not by an optimizer step; the first that differs is `{name}`"
NOT_COME = "{absent} {verb} not come to {name}, call {number} of group {group},"
NONE_IS_THROUGH = (
    "all ranks with a dump came to {name}, call {number} of group {group}, and none is through"
)
ON_RANKS = tuple(f"{{what{n}}} on rank {{rank{n}}}" for n in ("", "_2", "_3", "_4"))
DIFFERENT_WEIGHTS = "before step {number} the ranks have different weights in {some}, "
FIXED_DIVISOR = (
    "the sum of the losses is divided by {{own}}, the {what} of one rank's step, on one process "
    "too, whose step has {{whole}}"
)
MEAN_OF_MEANS = (
    "each rank takes the mean over its own {{numbers}} {what}, and DDP gives each mean the same "
    "weight: one process weighs all {{counts}} alike (loss {{loss}}, the ranks' mean is {{plain}})"
)
ABOUT_TO_STEP = (
    "and the optimizer is about to step with it on all ranks: the first spoilt gradient is that of "
    "`{name}`, one of {number} (optimizer step {count}, counted from 0)"
)
DIFFER = "the weights differ between ranks"
SINCE = (
    "from the wrap on",
    "since optimizer step {number}, though gradients and settings were equal",
)
FIRST_AT_STEP = "the first is `{name}` (optimizer step {count}, counted from 0)"
DRAWN_TOO_OFTEN = (
    *("while a batch was loaded", "between a batch and the forward", "in the loader's workers"),
    "in the model's forward: the masks of dropout, for instance, are alike on all ranks",
)
LOOKED_AT = ("all {number}", "the last {number} of {count}")
CHANGED_NOTHING = "that were looked at changed no weight of the wrapped model: {words}"
A_WAIT = "this line: its result is only sure to be there after a wait"
TO_SEVERAL = "one training pass went to more than one rank"
TO_NONE = "went to no rank in one training pass"
WATCHED = (
    *("{number} ranks, {steps}", "{number} ranks, {steps}, {count} pass over the data"),
    "{number} ranks, {steps}, {count} passes over the data",
    "{number} ranks, no optimizer step, {calls}",
)
A_SEAT = (
    "run here alone: {seconds} s, at most {ranks} ranks and {processes} processes at once; "
    "{seats} at once need {bytes} of memory"
)
A_TRAINING = "rank {number} {how}, step {count} of {number_2}, {number_3} digits/s"
HELD = "parameters gradients optimizer buckets gathered activations recomputed working".split()
SPENT = ("compute", "recompute", "waiting", "stragglers", "bubble", "tensor parallel")
WAITS = ("", ", waits {ms} of {ms_2} ms")
LOCALLY = "`https://pytorch.org/get-started/locally/`"
A_TRANSFORMER = "transformer {number} x {number_2}, {number_3} heads, {number_4} tokens"
DRAWN = ("weight", "noise")
BY_HAND = {  # put together in the code from pieces too small to be known alone
    "diagnosis": (
        "why: {cause}",
        "why: {cause} [{kind}]",
        "also: {cause} [{kind}]",
        "also, {rest}",
        "not recognised; first error: {error}",
        "sanitizer: {finding}",
        "{these} failed: {error}",
        "{these} had lost a thread: {error}, at {file}, line {number}, in {function}",
        "{these} called sys.exit({code})",
        "{these} lost the connection to another rank",
        "{these} had finished: {others} lost the connection to another rank",
        *(f"{NOT_COME} where {{others}} {verb}" for verb in ("wait", "waits")),
        f"{NONE_IS_THROUGH}; there is no dump of {{lost}}",
        "rank {rank} in {call} number {number}",
        *(", ".join(ON_RANKS[:many]) for many in (2, 3, 4)),
        "{these} was ended by {name} ({words})",
        "{these} was ended by {name}",
        "{these} ended with exit code {number} before its function returned (os._exit?)",
        "{these} did not tell where it was",
        f"at {AT}",
        f"{{what}} at {AT}",
        AT,
        *(f"{{these}} {how} {AT}" for how in STANDS),
        *(f"{{these}} {how} {AT}: {{source}}" for how in STANDS),
        "{ranks} on host {host}",
        "not known word for word; the nearest:",
        "nothing known is near to it: try a longer piece, or give the whole log to python -m "
        "ddp_helpers diagnose LOG",
        "printed: {text}",
        "see it: {where}",
        "no error found in this log",
    ),
    "environment": (
        "Memory",
        "Backends",
        "CPU cores",
        "GPUs",
        "Loopback",
        "{numbers} cores",
        "{number} core",
        "unlimited",
        "tested with torch {oldest} to {newest}",
        "{version}, CPU build",
        "{version}, CUDA {number} build",
        "kernel {version}, {processor}",
        "{variable} names {cards}",
        *("{number}, on {numbers} usable", "none: {error}", "{version}, ROCm {number} build"),
        "{number} core ({numbers} visible, but the cgroup's quota is {count})",
        "{numbers} cores ({number} visible, but the cgroup's quota is {count})",
        f"a CUDA build at {LOCALLY}",
        f"a build for CUDA {{driver}} or older at {LOCALLY}",
        *("nvidia-smi was not found", "nvidia-smi did not start: {error}"),
        "nvidia-smi says: {said}",
    ),
    "exercises": (
        "{number} {title} (about {count} minutes)",
        "notebook {number}: {numbers} of {numbers_2} done",
        "notebook {number}: {numbers} of {numbers_2} done; next: {what}",
        "{number}, hint {number_2} of {number_3}: {hint}",
        "{about}: it was {value}",
        "{about}: you: {guess}, it was {value}",
        "Your guess: {about}?",
        "{function} failed {where}:",
        "{function} did not end within {number} s {where}:",
        *("{number} call, {size} by rank {rank}", "{number} calls, {size} by rank {rank}"),
        "send and recv",
        "rank {number} printed:",
        "{place} is {is_now}, expected {should_be}, {number} times too large: a sum for a mean, or "
        "summed twice?",
        "{place} is {is_now}, expected {should_be}, {number} times too small: is it divided where "
        "it should not be, or twice?",
        "{place} is {is_now}, expected {should_be}",
        "{place} is {is_now}, expected {should_be}, and so nearly right: is it rounded on its way?",
        "with n={number} on {numbers} ranks",
        "part.grad after the weights have changed",
        "machine {node} goes to nowhere, expected 127.0.0.1:{port}",
        "two jobs on the same machine would both take port {port}",
        *(f"rank {{rank}}, same seed: the {what} is not the same again" for what in DRAWN),
        *(f"rank {{rank}}, the same seed in the next run: other {what}" for what in DRAWN),
        *(f"rank {{rank}}, another seed: the {what} is the same" for what in DRAWN),
    ),
    "sanitizer": (
        *(
            f"{CHANGED}{how}, {NOT_BY_A_STEP}"
            for how in ("", " only", " (by {call})", " only (by {call})")
        ),
        *(
            f"{what}, {ABOUT_TO_STEP}"
            for what in (
                "the loss is not finite on {who}",
                "a gradient became not finite in the backward of {who}",
                "gradients are not finite after they were averaged",
            )
        ),
        *(f"{DIFFER} {since}; {FIRST_AT_STEP}" for since in SINCE),
        "{optimizer} works with different `{name}` (parameter group {number}): {listed}",
        *(f"{{number}} {steps}" for steps in ("step", "steps", "collective", "collectives")),
        *(
            f"all ranks drew the same random numbers from {{which}} {when}"
            for when in DRAWN_TOO_OFTEN
        ),
        "{names} and torch's default generator",
        "torch's default generator and {names}",
        *(f"{which} steps of {{name}} {CHANGED_NOTHING}" for which in LOOKED_AT),
        *(
            f"nobody waited for {{called}}(async_op=True), {times} at {A_WAIT}"
            for times in ("once", "{number} times")
        ),
        "rank {rank} is in a process group of {number} and trains alone, but the launcher started "
        "{count} ranks ({told_by})",
        "the ranks' losses are means over different numbers of elements, and DDP averages them as "
        "if they were equal: {listed}",
        "the model got the same inputs on all ranks, and other ones in each step{who}",
        "every rank goes through the same {number} samples, each in its own order{who}",
        *(f"{some}{{number}} samples of {TO_SEVERAL}{{who}}" for some in ("", "about ")),
        *(f"{some}{{number}} of {{count}} samples {TO_NONE}{{who}}" for some in ("", "about ")),
        ": their loaders hold other parts of one dataset",
        *(f": their samplers have different {what} ({{each}})" for what in ("seeds", "epochs")),
        *(f"sanitizer: watched {what}; {{found}}" for what in WATCHED),
        "found: {kinds}",
        *(f"{found}; accepted: {{accepted}}" for found in ("nothing else found", "found: {kinds}")),
    ),
    "figures": (
        "all_reduce: {backend}, {numbers} ranks, threads per rank: {number}",
        *("done", "tried", "open", "notebook {number}", "yours", "forward", "backward"),
        *("optimizer", "data loading", "other", "hidden", "works", "waits", "returned"),
        *("median {number}", "to {number}", "from {number}", "of {number}", "line {number}"),
        *("{title} ({number} rank)", "{title} ({numbers} ranks)"),
        *("{title} ({numbers} and {number} ranks)", "{title} ({number} rank, {count} samples)"),
        "{title} ({numbers} ranks, {count} samples)",
        *("{numbers} ranks", "{number} rank", "{numbers} and {number} ranks"),
        *("rank {number}  compute", "rank {number}  all-reduce", "predicted", "measured"),
        *("waits {number} s", "waits {number} ms", "raised {name}", "at {place}"),
        "Rank {number}: {calls}; {end}.",
        "Missing: {name} of {these}.",
        "{claim}: {verdict}, in {number} of {count} {word}",
        "{claim}: {verdict}, {which} in {number} of {count} {word}",
        *("faster", "slower", "yes", "no", "rounds", "steps", "against"),
        "{number} MB a step in theory, {counted} counted",
        *("one process", "threads", "{number} ranks", "{number} worker", "{number} workers"),
        *("ring", "two levels", "full speed", "{way}, full speed", "weights", "gradients"),
        *("tensor parallel", "pipeline", "in turn", "kept", "ahead", "1 process"),
        *("all-gather", "reduce-scatter", "{number} a rank", "broadcast from 0", "scatter from 0"),
        "all_gather of the first",
        "{share} of rank 0's all-gathers are beside forward",
        "{number} pieces: bubble {theory} in theory, {waited} waited",
        "Bars of one step of 64 digits: {times}",
        "Bars of the median time of a step. {times}",
    ),
    "widgets": (
        "moment of the run",  # of a page, where a recorded run is played
        *("waits", "returned", "starts", "trains", "done", "failed", "ended", "stay", "new"),
        *("gone", "faulty", "mended", "hangs", "start-up", "silently wrong", "slow"),
        *("after the end", "many machines", "case {number}", "ring", "other", "average"),
        *("thread {number}", "sent {number} KiB"),
        *("chunk {number}", "thread {number}: {doing}", "rank {number}: {doing}", "collect"),
        *("forward", "backward", "optimizer", "memory", "compute", "recompute", "waiting"),
        *("stragglers", "bubble", "gradients", "buckets", "gathered", "activations"),
        *("recomputed", "working", "rank {number} {how} after {count} s", "{how}, {number} s"),
        "{text} Right: {title}. {cause}",
        "{number} stay, {count} new, {number_2} gone",
        *("Pause", "fits", "over by {number} GiB", "over by {number} cores"),
        "{number} of {count} cores",
        "{number} of {count} GiB",
        "CPU threads: {number} of {count} cores",
        "memory: {number} of {count} GiB",
        "/dev/shm: {number} of {count} GiB",
        *("0.12 billion", "1.3 billion", "6.7 billion", "65 billion"),
        "measured (ms)",
        *("DDP over {number}", "ZeRO-1 over {number}", "ZeRO-2 over {number}"),
        *("FSDP over {number}", "FSDP without resharding over {number}", "{count} pipeline stages"),
        *("FSDP without resharding", "{number} samples a rank", "{number} sample a rank"),
        "{number} x {count} samples a rank",
        "{number} x {count} sample a rank",
        *(f"{part}: {{number}} GB" for part in HELD),
        *(f"{part}: {{number}}%" for part in SPENT),
        *(f"{part}: {{number}} ms" for part in ("compute", "waits for messages", "other")),
        "Step {number} of {count}.",
        "Step {number} of {count} ({phase}).",
        "{layers} layers of {width}, {size} MiB of gradients, batches of {batch}, "
        "buckets of {bucket_mib} MiB, ranks: {number}.",
        "{layers} layers of {width}, {size} MiB of gradients, batches of {batch}, "
        "buckets of {bucket_mib} MiB.",
        "{how}: step {number} of {count}",
        "{how}: step {number} of ?",
        "{how}: step {number} of {count}, {number_2} digits/s",
        "{how}: step {number} of ?, {number_2} digits/s",
        *(A_TRAINING + waits + loss for waits in WAITS for loss in ("", ", loss {number_4}")),
        "rank {number} {how}, step {count} of {number_2}",
        "Stopped.",
        "{number} ({number_2} to {number_3})",
        "drop_last with {samples} samples for {ranks} ranks leaves no sample: use fewer ranks, "
        "more samples, or drop_last off",
        "precision mixed with {way}: it is FSDP's; take autocast",
    ),
    "ranks": (
        *("running", "done", "failed", "ended", "step {number} of {count}", "step {number}"),
        "{how}, step {number} of {count}",
        "{how}, step {number}",
        "{how}, step {number}, loss {loss}",
        "{how}, step {number} of {count}, loss {loss}",
        "Stop",
        "note: on host {host} {note}",
        "{ranks} has ended",
        "{ranks} have ended",
        "{ranks} is paused from outside (`kill -CONT` wakes it)",
        "{ranks} are paused from outside (`kill -CONT` wakes it)",
        "{these} waits in {call} at {frame}",
        "{these} wait in {call} at {frame}",
        "{these} waits at {frame}",
        "{these} wait at {frame}",
    ),
    "faults": (
        "fault",
        "torch says",
        "cause",
        "mend",
        "seen in",
        "nothing to report",
        "nothing",
    ),
    "troubleshooting": (
        "Troubleshooting",
        "**Why:**",
        "**What to do:**",
        'notebook {notebook}, "{section}"',
    ),
    "verifier": (
        "note: {note}",
        "scaled",
        "{names} and {number} more",
        "{told}; the loss is {loss} times one process's",
        "the ranks do not hold the same data: {what}",
        "other values {size} in place of other values {size_2} as its part {number}",
        *(
            text.format(what=what)
            for what in ("samples", "targets")
            for text in (FIXED_DIVISOR, MEAN_OF_MEANS)
        ),
        *(
            DIFFERENT_WEIGHTS + where
            for where in ("of no DDP model", "although DDP averages the gradients")
        ),
        "the ranks' gradients of {some} are not averaged, the others are: they belong to a module "
        "that is not inside the DDP model",
        "call the wrapped model, ddp(x), not ddp.module(x); and the last backward before "
        "optimizer.step() must not be in no_sync()",
        "all gradients are {number} times too large",
        "all gradients are {number} times too small",
        "only {some} have gradients {number} times too large",
        "only {some} have gradients {number} times too small",
        "parts at step {step}, {where}, first {name}: {n} ranks are not one process",
        "parts at step {step}, {where}, first {name} ({module}): {n} ranks are not one process",
    ),
    "launch": (
        "the clean-up of its process group",
        "{call} on ranks {numbers} and {number}",
        "ranks {numbers}",
        "ranks {numbers} and {number}",
        "{first} and ranks {numbers} and {number}",
    ),
    "bench": (
        "{value} of the step is forward, backward and optimizer; {shares} is exposed all-reduce",
        "{value} of the step is forward, backward and optimizer; {shares} is exposed all-reduce. "
        "{number} ranks on {count} cores: more ranks bring no more cores",
        "{shares} of the step waits for the DataLoader; the ranks use all cores, so workers help "
        "only if loading waits for a disk",
        "{shares} of the step is all-reduce that nothing hides; {late} of the all-reduce time a "
        "rank waits for the last one to start",
    ),
    "classroom": (
        *("Ports", "Processes", "Namespaces", "Notebook {number}", "{number} threads"),
        *("{number} try", "{number} tries", "{number} hint", "{number} hints"),
        "{number} learners, {time}",
        "{seats} seats fit here, and share few cores: see CPU cores",
        "{cores} for {ranks} ranks, if all {seats} run a cell at once; the whole notebook takes "
        "them about {value} min then",
        *("{need} needed, {have} there", "{need} needed, no limit there"),
        "{need} needed, {have} there; {bytes} a seat at its peak, and {bytes_2} that all share",
        "About {fits} seats fit. Shut down idle kernels, let half of the room read, or take a "
        "second machine.",
        f"{A_SEAT}",
        f"{A_SEAT}; {{problem}}",
        "A cell can take up to {crowd} times as long while all run it at once. Let half of the "
        "room read, or work in pairs.",
        "`sysctl kernel.yama.ptrace_scope=0`, or in Docker `--cap-add SYS_PTRACE`; without it "
        "notebook 05 prints this line in its place.",
    ),
    "cluster": (
        *("name", "network", "card", "port", "versions", "clock", "meeting", "node {number}"),
        "as on {who}: {versions}",
        "{name} is {mine} here, {theirs} on {who}",
    ),
    "command": (
        *("{number} rank", "{number} ranks", "machine: {name}", "figure: {path}", "assumed:"),
        *("sent: {sends}", "profile: {path}", "the sanitizer watched nothing"),
        "{folder}: nothing new",
        "{folder}: {number} notebook",
        "{folder}: {number} notebooks",
        "{folder}: nothing new; changed by the learner, and left alone: {left}",
        "{folder}: {number} notebook; changed by the learner, and left alone: {left}",
        "{folder}: {number} notebooks; changed by the learner, and left alone: {left}",
        "{number} CPU thread a rank, {number_2} cores, median of {number_3} rounds",
        "{number} CPU threads a rank, {number_2} cores, median of {number_3} rounds",
        "the sanitizer watched nothing: it was off, see above",
        "the sanitizer watched nothing on this machine; of ranks on others it can't tell from here",
        "the sanitizer watched nothing: no Python took it in",
        "the sanitizer watched nothing: no Python that took it in imported torch.distributed",
        "the sanitizer watched nothing: torch was imported, but no process that took it in called "
        "init_process_group; a script that starts without a launcher has no ranks to compare",
        *(
            f"model: {A_TRANSFORMER}{share}, {{number_5}} parameters, {{optimizer}}, {{value}}; GB "
            "of a rank at a step's peak"
            for share in ("", ", a share of {count}")
        ),
        *(
            f"{fits} into {{capacity}} GB with tensor parallel over {{tensor_parallel}} and "
            "{in_words}"
            for fits in ("fits", "may fit")
        ),
    ),
    "scaling": (
        *("fits", "assumed:", "assumed of all:", "above 0"),
        "does not fit into {giga} GB under {in_words}: {number} GB a rank; {rest}",
        "{fits} with {in_words}: {number} GB",
        "{fits} with {in_words}: {number} GB, up to {number_2} GB if memory is fragmented",
        "no way fits on {ranks}: FSDP over {enough_ranks} would",
        "no number of ranks helps, as one sample's activations or one block are too much: cut the "
        "layers themselves (tensor parallel), or take shorter samples",
        "fitted, to the first time only:",
        "fitted, to the first and the last time only:",
        "rated links: an all-reduce reaches {REACHED}",
        "one ring through all ranks, as NCCL's; two thirds of the computing is backward",
        "the range: 30 % of a bandwidth, 50 % of a latency, 10 % of the step; at its bad end the "
        "backward hides nothing",
        "{found} rows: median error {median}, largest {off}; {inside} ({value}) within the "
        "predicted range",
    ),
}
