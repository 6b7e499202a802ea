"""A plan as text."""

from __future__ import annotations

from recipes.planning.fitting import CONTEXT_GIB, MARGIN, PROCESS_GIB, SLACK
from recipes.planning.memory import CAUSES
from recipes.planning.plan import Plan
from recipes.planning.speed import Seconds

MODELLED = "a model, not a measurement: not measured on a GPU by this project"
BASIS = """basis
  memory   counted from this repository's code, operation by operation; with live tensors of real steps on a CPU it
           agrees within 10 % at toy size (tests/recipes/planning). Of a GPU, context and slack are our choice, and
           attention's and the optimizer's work space were not measured
  FLOPs    causal attention as a half, no recomputation (recipes/planning/flops.py)
  time     FLOPs over the peaks of conf/hardware times the shares reached that are stated there; the range is theirs
  disk     weights and states that are saved, tokens as the store writes them; raw text is 4.2 bytes a token"""
CAUSE_WIDTH = 34


def report(plan: Plan) -> str:
    """The table and what follows from it."""
    parts = [_head(plan), _memory(plan), _advice(plan), _time(plan), _disk(plan), _notes(plan), BASIS]
    return "\n\n".join(filter(None, parts))


def _head(plan: Plan) -> str:
    job, model = plan.run.job, plan.run.job.model
    trained = "all" if job.adapter is None else f"{job.trained:,}"
    kind = MODELLED if plan.hardware.on_gpu else "a model of this machine"
    lines = [
        f"{plan.recipe} on {plan.devices} x {plan.hardware.name} ({kind})",
        f"  model      {model.num_parameters:,} parameters, {trained} trained; sizes from {plan.run.sized_by}",
        f"  step       {_counted(plan.run.rows_per_step, 'row')}{' at most' if plan.run.rows_are_most else ''} of"
        f" {job.row_tokens:,} tokens; of each device {_counted(job.micro_batches, 'micro-batch')} of"
        f" {_counted(job.rows, 'row')}",
        f"  options    strategy={job.strategy} memory={plan.memory_name} precision={job.precision}"
        f" optimizer={job.optimizer}",
    ]
    return "\n".join(lines)


def _memory(plan: Plan) -> str:
    need = plan.need
    lines = [f"memory of a device, at its fullest: {need.moment}"]
    lines += [f"  {cause:<{CAUSE_WIDTH}}{_gib(need.causes[cause])}" for cause in CAUSES if cause in need.causes]
    if plan.hardware.on_gpu:
        rest = [("context of the GPU, our choice", CONTEXT_GIB), (f"slack, {SLACK:.0%}", SLACK * need.tensors)]
    else:
        rest = [("libraries", PROCESS_GIB)]
    lines += [f"  {cause:<{CAUSE_WIDTH}}{_gib(gib)}" for cause, gib in rest]
    lines.append(f"  {'in all':<{CAUSE_WIDTH}}{_gib(need.device)} of {need.device_has:.1f}")
    if need.host:
        lines.append(f"  {'memory of a host':<{CAUSE_WIDTH}}{_gib(need.host)} of {need.host_has:.1f}")
    if need.fits:
        lines.append("fits")
    else:
        short = [f"{need.short:.1f} GiB a device"] if need.short else []
        short += [f"{need.host_short:.1f} GiB a host, where every rank reads the weights"] if need.host_short else []
        lines.append(f"does not fit, short by {' and '.join(short)}")
    return "\n".join(lines)


def _gib(gib: float) -> str:
    return f"{gib:9.2f} GiB" if gib >= 0.1 else f"{gib * 1024:9.1f} MiB"


def _advice(plan: Plan) -> str:
    longest = plan.longest_context
    lines = [f"longest rows that fit with these options: {longest:,} tokens" if longest else "no rows fit"]
    if plan.best is not None:
        why = "fastest" if plan.best.seconds is not None else "least computing"
        lines.append(f"{why} that fits with {1 - MARGIN:.0%} to spare: {plan.words}")
        seconds = plan.best.seconds
        took = f", {_range(seconds, 's a step')}" if seconds is not None and plan.calibration is None else ""
        lines.append(f"  needs {plan.best.need.device:.1f} GiB a device{took}")
    elif plan.best_devices is not None:
        lines.append(f"no options fit with {1 - MARGIN:.0%} to spare; the least number that some fit on: devices=")
        lines[-1] += str(plan.best_devices)
    else:
        why = ", as hosts cannot hold the weights that every rank reads" if plan.need.host_short else ""
        lines.append(f"no options fit on any number of these devices that the step's rows divide over{why}")
    return "\n".join(lines)


def _time(plan: Plan) -> str:
    tokens = "tokens that the prepared data gives" if plan.prepared else "tokens of full rows"
    said = "not known before python -m recipes.prepare" if plan.steps is None else f"{plan.steps:,}"
    lines = ["time", f"  steps      {said}"]
    if plan.tokens is not None:
        lines.append(f"  tokens     {plan.tokens:,}{'' if plan.tokens_are_exact else ' at most'} ({tokens})")
    documents = "the documents of the prepared data" if plan.prepared else _documents(plan)
    lines.append(f"  FLOPs      {plan.step_flops:.3g} a step, {plan.step_flops / plan.tokens_per_step / 1e9:.4g} G a")
    lines[-1] += f" token; attention over {documents}"
    if plan.seconds is None:
        lines.append("  not known how long: calibrate=true measures three steps on this machine")
        return "\n".join(lines)
    rate = plan.tokens_per_second
    assert rate is not None
    lines.append(f"  a step     {_range(plan.seconds, 's')}")
    unit = "GPU" if plan.hardware.on_gpu else "machine"
    lines.append(
        f"  tokens/s   {_range(rate, '')}, of a device {_range(Seconds(*(r / plan.devices for r in rate)), '')}"
    )
    if plan.hours is not None and plan.device_hours is not None:
        lines.append(f"  the run    {_range(plan.hours, 'hours')}, {_range(plan.device_hours, f'{unit}-hours')}")
    if plan.cost is not None:
        lines.append(f"  cost       {_range(plan.cost, '')} at {plan.hardware.price_per_hour} a {unit}-hour")
    elif plan.device_hours is not None:
        lines.append(f"  cost       give price=<of a {unit}-hour>")
    return "\n".join(lines)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "es" if what.endswith("ch") else "s")


def _documents(plan: Plan) -> str:
    rows = f"full rows of {plan.run.job.row_tokens:,}, as the corpus is not prepared"
    return f"{rows}; documents that are masked cost less" if plan.run.masked else rows


def _disk(plan: Plan) -> str:
    disk, lines = plan.disk, ["disk"]
    if disk.raw is not None and disk.tokens is not None:
        what = "of the data that is there" if plan.prepared else "if every token is read once"
        lines.append(f"  data       {_bytes(disk.raw)} of text, {_bytes(disk.tokens)} of tokens, {what}")
    lines.append(f"  checkpoint {_bytes(disk.checkpoint)} each, {_bytes(disk.checkpoints)} at most at once")
    lines.append(f"  export     {_bytes(disk.export)}")
    return "\n".join(lines)


def _notes(plan: Plan) -> str:
    notes = list(plan.run.notes)
    if plan.calibration is not None:
        found = plan.calibration
        notes.append(f"memory is corrected by {found.memory_factor:.2f}, and time is that of {found.machine}:")
        notes[-1] += f" {found.file}"
    job = plan.run.job
    if job.sharded and job.micro_batches > 1 and not job.reduces_always:
        notes.append("all gradients stand on every device until a step's last micro-batch; strategy.reduce_gradients=")
        notes[-1] += "every_micro_batch shards them"
    return "\n".join(f"note: {note}" for note in notes)


def _range(values: Seconds, unit: str) -> str:
    low, high = values
    said = f"{_figure(low)}" if low == high else f"{_figure(low)} to {_figure(high)}"
    return f"{said} {unit}".strip()


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} KB"
