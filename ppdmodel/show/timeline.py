"""The picture of the pipeline: which process runs which layers of which token, and when."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..checks import check_schedule
from ..errors import InvalidInputError
from ..simulation.policy import Policy
from ..simulation.runs import ProcessRecord, Simulation
from ..simulation.simulator import replay
from .figures.canvas import axes_of, figure_of, style

KNOWN, KEPT, DROPPED, PLAIN, INK = "#0072B2", "#009E73", "#C9C9C9", "#8C8C8C", "#222222"
#: one match, one miss, and two matches in a row
DEFAULT_MATCHES = (True, False, True, True)
_MOST_PROCESSES, _MOST_NUMBERED = 60, 48  # numbered: most layer times with room for digits
_BAR, _GAP = 0.82, 0.75


def timeline(
    matches: Sequence[bool] = DEFAULT_MATCHES,
    *,
    layers: int,
    exit_layer: int,
    k: int = 2,
    depth: int | None = 1,
    ax: Axes | None = None,
) -> Figure:
    """What every process runs, layer by layer, beside plain decoding of the same tokens.

    Args:
        matches: for each token after the first, whether a guess held it.
        layers: decoder layers d.
        exit_layer: exit layer e, at most d.
        k: guesses started per exit.
        depth: tokens in flight beyond the one being verified, or None for unlimited.
        ax: where to draw.

    Raises:
        InvalidInputError: an argument is outside its domain, or there is too much to draw.
    """
    policy = Policy(exit_layer, k, depth)
    check_schedule(layers, policy.exits[-1])
    if len(matches) >= _MOST_PROCESSES:
        raise InvalidInputError(
            f"a timeline must have fewer than {_MOST_PROCESSES} matches; got {len(matches)}; give "
            "fewer"
        )
    run = replay(matches, policy, layers=layers, record=True).generations[0]
    rows = _rows(run)
    height = 1 + len(rows) * 0.21 + (run.tokens + 1) * 0.16
    with style():
        ax = axes_of(ax, figsize=(7.6, height))
        _plain(ax, layers, run.tokens)
        for y, record in rows:
            _process(ax, y, record, run, layers)
        _starts(ax, rows, exit_layer)
        _verdicts(ax, rows, run, layers * 0.12)
        _names(ax, rows, run, layers, exit_layer)
        return figure_of(ax)


def _rows(run: Simulation) -> list[tuple[float, ProcessRecord]]:
    """A row for each process, from the top: by token, the right one first."""
    records = run.processes or ()
    total = sum(record.count for record in records)
    if total > _MOST_PROCESSES:
        raise InvalidInputError(
            f"a timeline must have at most {_MOST_PROCESSES} processes; got {total}; "
            "lower k or depth, or give fewer matches"
        )
    rows: list[tuple[float, ProcessRecord]] = []
    y, token = -1.0 - _GAP, 0
    for record in sorted(records, key=lambda r: (r.token, not r.verified, r.started)):
        if record.token > token:
            y, token = y - _GAP, record.token
        for _ in range(record.count):
            rows.append((y, record))
            y -= 1
    return rows


def _cells(ax: Axes, y: float, start: float, colors: Sequence[str], *, numbered: bool) -> None:
    """Layers that one process runs, from `start` on: a cell each."""
    ax.barh(
        [y] * len(colors),
        [1.0] * len(colors),
        left=[start + n for n in range(len(colors))],
        height=_BAR,
        color=colors,
        edgecolor="white",
        linewidth=0.7 if numbered else 0,
    )
    for n, color in enumerate(colors if numbered else ()):
        ink = INK if color == DROPPED else "white"
        at = (start + n + 0.5, y)
        ax.text(*at, str(n + 1), ha="center", va="center_baseline", fontsize=6, color=ink)


def _plain(ax: Axes, layers: int, tokens: int) -> None:
    for token in range(tokens):
        ax.barh(0, layers, left=token * layers, height=_BAR, color=PLAIN, edgecolor="white")
        name = f"token {token + 1}"
        at = ((token + 0.5) * layers, 0)
        ax.text(*at, name, ha="center", va="center_baseline", fontsize=7, color="white")


def _process(ax: Axes, y: float, record: ProcessRecord, run: Simulation, layers: int) -> None:
    """Draw one process; layers run before its token was known are coloured apart."""
    known = run.finish_times[record.token - 1] if record.token else 0.0
    ran = round(min(record.ended - record.started, layers))
    if record.verified:
        ahead = round(max(known - record.started, 0))
        colors = [KEPT] * ahead + [KNOWN] * (ran - ahead)
    else:
        colors = [DROPPED] * ran
        ax.plot(record.ended + layers * 0.05, y, "x", color=INK, ms=4, mew=1.2)
    _cells(ax, y, record.started, colors, numbered=layers * run.tokens <= _MOST_NUMBERED)


def _starts(ax: Axes, rows: Sequence[tuple[float, ProcessRecord]], exit_layer: int) -> None:
    """Arrows from the exit of each right process to the guesses that it started."""
    for y, parent in rows:
        if not parent.verified:
            continue
        for lower, child in rows:
            born_of = child.token == parent.token + 1 and child.generation <= 1
            if born_of and parent.started + exit_layer <= child.started < parent.ended:
                ax.annotate(
                    "",
                    (child.started, lower + _BAR / 2),
                    (child.started, y - _BAR / 2),
                    arrowprops={"arrowstyle": "-|>,head_width=0.12,head_length=0.25"}
                    | {"color": INK, "lw": 0.9, "shrinkA": 0, "shrinkB": 0},
                )


def _verdicts(
    ax: Axes, rows: Sequence[tuple[float, ProcessRecord]], run: Simulation, space: float
) -> None:
    """Label each verified token: whether a guess for the next one matches it."""
    for y, record in rows:
        if record.verified and record.token < run.tokens - 1:
            said = "match" if run.first_hit[record.token] else "miss: start afresh"
            color = KEPT if run.first_hit[record.token] else "#B34700"
            at = (record.ended + space, y)
            ax.text(*at, said, va="center_baseline", fontsize=7.5, color=color, weight="bold")


def _names(
    ax: Axes,
    rows: Sequence[tuple[float, ProcessRecord]],
    run: Simulation,
    layers: int,
    exit_layer: int,
) -> None:
    ticks, names = [0.0], ["plain decoding"]
    for y, record in rows:
        ticks.append(y)
        first = not any(t > y and r.token == record.token for t, r in rows)
        role = "right guess" if record.verified else "wrong guess"
        fresh = record.verified and not (record.token and run.first_hit[record.token - 1])
        name = f"token {record.token + 1}"
        names.append(name if fresh else f"{name}, {role}" if first else role)
    plain, took = layers * run.tokens, run.finish_times[-1]
    ax.axvline(took, color=INK, ls=":", lw=1)
    title = f"PPD takes {took:g} layer times, plain decoding {plain}, for {run.tokens} tokens"
    ax.set_title(title, weight="bold", pad=10)
    for color, label in (
        (KNOWN, "layer of a token that is known"),
        (KEPT, "layer run ahead on a right guess: kept"),
        (DROPPED, "layer run ahead on a wrong guess: dropped (×)"),
    ):
        ax.barh(0, 0, color=color, label=label)
    ax.plot(
        [], [], color=INK, lw=1, marker="v", ms=3, label=f"guesses read after layer {exit_layer}"
    )
    below = (
        -0.52 / ax.get_window_extent().transformed(figure_of(ax).dpi_scale_trans.inverted()).height
    )
    ax.legend(loc="upper center", bbox_to_anchor=(0.42, below), ncols=2, fontsize=8)
    ax.set_yticks(ticks, names, fontsize=8)
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="time, in layer times", xlim=(0, plain + 0.5), ylim=(ticks[-1] - 0.7, 0.7))
    ax.set_xticks(range(0, plain + 1, layers))
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
