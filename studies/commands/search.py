"""``search``: tune a learner's options with Optuna."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from metaplastic.errors import ConfigurationError, UnknownNameError
from studies.assembly import make_learner, make_run_task, pick_device
from studies.commands.base import Command
from studies.commands.train import LEARNER, TASK, add_run_options, given_sizes
from studies.config import RunConfig, make_config, read_options
from studies.folders import open_folder
from studies.interrupt import stoppable
from studies.results import Result
from studies.run import row_of
from studies.spelling import run_words

PRESET = "quick"
TRIALS = 20


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``search``."""
    add_run_options(parser)
    group = parser.add_argument_group("the search")
    group.add_argument(
        "--trials", type=int, default=TRIALS, help=f"finished trials in all ({TRIALS})"
    )
    group.add_argument(
        "--storage",
        metavar="URL",
        help="where the study is kept: a file (SQLite), postgresql://..., grpc://host:port, or a "
        "file ending in .journal (DIR/study.db)",
    )
    group.add_argument("--study-name", metavar="NAME", help="name of the study (TASK-LEARNER)")
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with a study up to --trials; its options must be the same",
    )
    group.add_argument("--workers", type=int, default=1, help="processes on this machine (1)")
    group.add_argument("--sampler", default="tpe", help="tpe, gp, cmaes, random or grid (tpe)")
    group.add_argument(
        "--pruner",
        help="none, hyperband or median (by meta-step), or wilcoxon (episode by episode against "
        "the best trial) (median; none for several objectives)",
    )
    group.add_argument(
        "--objectives",
        default="score",
        help="score, forgetting, seconds, or several with commas between them (score)",
    )
    group.add_argument("--timeout", type=float, help="seconds after which no new trial begins")
    group.add_argument(
        "--grace",
        type=int,
        default=60,
        help="seconds without a sign of life after which a worker's trial is run again (60)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run ``search``."""
    try:
        import optuna

        from metaplastic.tune import finished, open_storage, open_study
        from metaplastic.tune.storage import has_heartbeat
        from studies.search import DATABASE, Search, make_problem, run_workers, sign
        from studies.search_display import SearchDisplay, best_first, search_table
    except ImportError as reason:
        raise ConfigurationError(
            f"a search needs Optuna ({reason}): pip install 'metaplastic[tune]'."
        ) from reason
    began, device = time.monotonic(), pick_device(arguments.device)
    config, measures = _configured(arguments), _measures(arguments.objectives)
    pruner = arguments.pruner or ("median" if len(measures) == 1 else "none")
    _check(arguments, measures, pruner)
    make_learner(config, make_run_task(config, device), device)
    out = _folder(arguments)
    place = arguments.storage or str(out / DATABASE)
    interval = max(1, min(10, arguments.grace // 4))
    storage = open_storage(place, interval=interval, grace=arguments.grace)
    if not has_heartbeat(storage):
        print(
            "This storage shows no signs of life in Optuna 5: the trial of a worker that is killed "
            "stays as running, takes one of the --trials and is not run again. A database does "
            "better."
        )
    problem = make_problem(config, device)
    name = arguments.study_name or f"{config.task}-{config.learner}"
    logging = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = open_study(storage, name, problem, measures, resume=arguments.resume)
        earlier = sign(study, config, _words(arguments, config, pruner))
        job = Search(
            config, place, name, str(out), arguments.trials, arguments.sampler, pruner, measures,
            arguments.timeout, device.type, interval, arguments.grace, earlier,
        )  # fmt: skip
        with (
            stoppable() as stop,
            SearchDisplay(arguments.trials, measures, config.chance) as display,
        ):
            run_workers(job, arguments.workers, display.look, stop)
    finally:
        optuna.logging.set_verbosity(logging)
    done, best = finished(study), best_first(study, measures)
    result = Result(
        command="search",
        config={
            **config.as_json(),
            "study": name,
            "sampler": arguments.sampler,
            "pruner": pruner,
            "objectives": list(measures),
            "workers": arguments.workers,
            "trials": len(done),
        },
        seeds=[config.seed],
        rows=[_row(trial, config) for trial in best],
        headline=_headline(name, done, best, measures, config.chance),
        seconds=time.monotonic() - began,
        device=device,
    )
    result.write(out)
    print(f"\n{search_table(study, measures, config.chance)}\n")
    shown = "URL" if "@" in place else place  # there may be a password in it
    print(f"The study and its artifacts are in {out}; see it with")
    print(f"  python -m studies search-report {name} --storage {shown}")
    print(result.headline)


def _configured(arguments: argparse.Namespace) -> RunConfig:
    config = make_config(
        arguments.task or TASK,
        arguments.learner or LEARNER,
        arguments.preset or PRESET,
        arguments.seed or 0,
        metagradient=arguments.metagradient,
        steps=arguments.steps,
        episodes=arguments.episodes,
        task_options=given_sizes(arguments),
        options=None if arguments.config is None else read_options(arguments.config),
        arch=arguments.arch,
    )
    if not config.rate_search:
        return config
    # A trial has its rate from the search; the default one is the middle of those that a single
    # run would try.
    rates = sorted(config.rate_search["rates"])
    options = {**config.options, "rate": rates[len(rates) // 2]}
    return replace(config, options=options, rate_search={})


def _words(arguments: argparse.Namespace, config: RunConfig, pruner: str) -> str:
    """The command, without what is of this machine."""
    options = f" --config {arguments.config}" if arguments.config else ""
    return (
        f"python -m studies search {run_words(config)}{options} --seed {config.seed} "
        f"--trials {arguments.trials} --objectives {arguments.objectives} "
        f"--sampler {arguments.sampler} --pruner {pruner}"
    )


def _measures(text: str) -> tuple[Any, ...]:
    from metaplastic.tune.problem import Measure

    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in get_args(Measure):
            raise UnknownNameError("objective", name, get_args(Measure))
    if len(set(names)) < len(names):
        raise ConfigurationError(f"--objectives {text}: give each one once.")
    return names


def _check(arguments: argparse.Namespace, measures: tuple[Any, ...], pruner: str) -> None:
    from metaplastic.tune import make_pruner, make_sampler

    make_pruner(pruner)
    make_sampler(arguments.sampler, 0, {}, arguments.trials)
    if arguments.trials < 1 or arguments.workers < 1 or arguments.grace < 2:
        raise ConfigurationError(
            f"--trials and --workers count from 1 and --grace from 2; got {arguments.trials}, "
            f"{arguments.workers} and {arguments.grace}."
        )
    if len(measures) > 1 and pruner != "none":
        raise ConfigurationError(
            f"--pruner {pruner}: trials of several objectives are not pruned; leave it out."
        )
    if len(measures) > 1 and arguments.sampler == "cmaes":
        raise ConfigurationError("--sampler cmaes: it searches for one objective; take tpe or gp.")
    if measures == ("seconds",) and pruner == "wilcoxon":
        raise ConfigurationError("--pruner wilcoxon: seconds are not measured by the episode.")


def _folder(arguments: argparse.Namespace) -> Path:
    if arguments.resume and arguments.out is not None and Path(arguments.out).is_dir():
        return Path(arguments.out)
    if arguments.resume and arguments.storage is None:
        raise ConfigurationError(
            "--resume needs the study: give its --out folder, or --storage and --study-name."
        )
    return open_folder(arguments.out, "search", arguments.overwrite)


def _row(trial: Any, config: RunConfig) -> dict[str, Any]:
    score = trial.user_attrs["validation"]
    return {
        **row_of(replace(config, seed=trial.user_attrs["seed"])),
        "learner": f"{config.learner} trial {trial.number}",
        "episodes": min(config.test, 200),
        "loss": score["loss"],
        "accuracy": score["accuracy"],
        "ci95": None,
        "per_task": None,
        "forgetting": score["forgetting"],
        "diverged": score["diverged"],
    }


def _headline(
    name: str, done: list[Any], best: list[Any], measures: tuple[Any, ...], chance: float | None
) -> str:
    from studies.search_display import outcome_words

    counts = [t.user_attrs.get("outcome", "?") for t in done]
    kinds = ", ".join(f"{counts.count(k)} {k}" for k in dict.fromkeys(counts))
    if not best:
        return f"{name}: {len(done)} trials ({kinds}), none complete: lower the rates"
    default = next((t for t in best if t.user_attrs.get("baseline") == "default"), None)
    against = "" if default is None else f"; the default {outcome_words(default, measures, chance)}"
    return (
        f"{name}: {len(done)} trials ({kinds}); the best on validation is trial {best[0].number} "
        f"with {outcome_words(best[0], measures, chance)}{against}"
    )


COMMAND = Command(
    name="search",
    about="tune a learner's options with Optuna; resumable, on any number of workers",
    description="Search the options that a learner declares, by trials scored on validation "
    "episodes that are the same for all. The defaults come first as a baseline. A study survives "
    "killed workers and is gone on with by --resume.",
    add_options=add_options,
    run=run,
    preset=PRESET,
    names=True,
)
