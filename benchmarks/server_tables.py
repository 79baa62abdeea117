"""The report of a comparison of servers, in Markdown."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.contenders import LIMIT, MOST, NO_DELAY, OURS, USERS, WARM_UP_S, Plan, Results
from benchmarks.peers.setting import Setting
from benchmarks.sweep import line
from serving.batch.decoding import cores


def shown(value: float | str) -> str:
    """A figure with a sensible number of digits, or the words that stand in for it."""
    return value if isinstance(value, str) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """Median, and smallest to largest."""
    if not values:
        return "-"
    low, middle, high = (shown(value) for value in (min(values), statistics.median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def comparison(everything: Mapping[str, Results]) -> list[str]:
    """The table of the contenders, a line each."""
    times = [f"{users} user{'s' * (users > 1)}: {p}, ms" for users in USERS for p in ("p50", "p99")]
    columns = ["", "workers x batch, delay", f"{MOST} users: answers/s", "of the limit", "of ours", *times]
    columns += ["memory, MiB", "start, s", "errors", "generator, cores"]
    lines = [line(*columns), line("---", "---", *["---:"] * (len(columns) - 2))]
    for name, results in everything.items():
        if not results.rounds:
            why = next((str(value) for value in results.tuning.values() if isinstance(value, str)), "it did not start")
            lines.append(line(name, why.replace("|", "/"), *["-"] * (len(columns) - 2)))
            continue
        rounds = results.rounds.values()
        ratios = [spread(relative(results, everything.get(other))) for other in (LIMIT, OURS)]
        wanted = [f"{users} {p}" for users in USERS for p in ("p50", "p99")] + ["memory", "start"]
        cells = [spread([figures[what] for figures in rounds]) for what in wanted]
        errors = (
            f"{sum(figures['errors'] for figures in rounds):.0f} of"
            f" {sum(figures['requests'] for figures in rounds):,.0f}"
        )
        generator = "-" if name == LIMIT else spread([figures[f"{MOST} generator_cores"] for figures in rounds])
        speed = spread([figures[f"{MOST} per_second"] for figures in rounds])
        lines.append(line(name, words_of(name, results.chosen), speed, *ratios, *cells, errors, generator))
    return lines


def relative(results: Results, other: Results | None) -> list[float]:
    """Answers a second as a share of another contender's, in each round that both have."""
    what = f"{MOST} per_second"
    rounds = other.rounds if other else {}
    return [
        figures[what] / rounds[number][what]
        for number, figures in results.rounds.items()
        if number in rounds and rounds[number][what]
    ]


def words_of(name: str, setting: Setting | None) -> str:
    """A setting in a table's cell."""
    if setting is None:
        return "-"
    delay = (
        "" if setting.batch == 1 or name == LIMIT else ", own delay" if name in NO_DELAY else f", {setting.delay_ms} ms"
    )
    return f"{setting.workers} x {setting.batch}{delay}"


def tuning(everything: Mapping[str, Results]) -> list[str]:
    """The table of the grid: right answers a second of every setting, for each contender."""
    lines = [line("", "workers x batch, delay", f"{MOST} users: answers/s"), line("---", "---", "---:")]
    for name, results in everything.items():
        for setting, speed in results.tuning.items():
            text = shown(speed).replace("|", "/")
            lines.append(line(name, words_of(name, setting), f"**{text}**" if setting == results.chosen else text))
    return lines


def report(everything: Mapping[str, Results], plan: Plan) -> str:
    lines = [
        f"{platform.machine()}, {cores()} cores that the load generator (wrk) shares; medians (smallest to largest)",
        f"of {plan.rounds} rounds of {plan.seconds:.0f} s for each number of users, the contenders in turn.",
        "Memory is the sum of the PSS of all processes, the highest after any load. Start is from the program's start",
        "to its first right answer. Errors are all answers but the right character. The limit is the same handler, in",
        "as many processes and batches of the same size as ours, with the pictures in memory and no generator beside",
        f"it. Ratios are of the same round. Every contender has answered {MOST} users for {WARM_UP_S:.0f} s before.",
        "",
        *comparison(everything),
        "",
        f"How each was tuned ({plan.tuning_seconds:.0f} s a setting; the chosen one is bold):",
        "",
        *tuning(everything),
    ]
    return "\n".join(lines)
