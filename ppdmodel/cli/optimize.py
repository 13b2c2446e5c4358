"""`ppdmodel optimize`: the best setting under budgets and prices, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..decide.outcomes import Choice, Decision
from ..errors import InvalidInputError
from ..results.calibration import Calibration
from ..results.intervals import Interval
from .format import ABSENT, interval, number, print_json, print_table, say
from .options import Json, option, rates_in, refuse, whole_option
from .progress import progress_bar

#: a break-even match rate below this is not shown
SHOWN = 0.0005
#: share of the resamples below which the answer is reported as uncertain
SURE = 0.5
DEVICE = "H100 SXM"
HARDWARE = "Without a measurement: ideal times"


def optimize_command(
    calibration: Annotated[Path, typer.Argument(metavar="CAL", help="A calibration file.")],
    max_compute: Annotated[
        list[float] | None,
        option("--max-compute", "Compute budget, × plain decoding; may repeat.", "C"),
    ] = None,
    price: Annotated[
        list[float] | None,
        option(
            "--price", "Extra layer executions that a layer time saved is worth; may repeat.", "PI"
        ),
    ] = None,
    max_depth: Annotated[
        int, whole_option("--max-depth", "Try depths 1...N; counts layers.", "N")
    ] = 1,
    max_units: Annotated[
        int | None, whole_option("--max-units", "Most processes (devices, with times).", "U")
    ] = None,
    ideal: Annotated[
        bool, option("--ideal", "Count layers even if CAL has measured times.")
    ] = False,
    roofline: Annotated[
        Path | None,
        option(
            "--roofline",
            "A model's config.json: ideal times on --device, rates by relative depth.",
            "CONFIG",
            HARDWARE,
        ),
    ] = None,
    device: Annotated[
        str | None, option("--device", "See below; default H100 SXM.", "NAME", HARDWARE)
    ] = None,
    bytes_per_weight: Annotated[
        float | None, option("--bytes-per-weight", "Default 2 (bf16).", "B", HARDWARE)
    ] = None,
    units_per_process: Annotated[
        int | None,
        whole_option(
            "--units-per-process", "Tensor-parallel devices per process; 1.", "N", HARDWARE
        ),
    ] = None,
    link_time_s: Annotated[
        float | None, option("--link-time-s", "Latency of a small message; 0.", "S", HARDWARE)
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the best exit layer, k and depth of a measured model under budgets or at prices.

    In seconds where the calibration has measured times, else in layer times.

    Devices: A100 SXM 80GB, H100 SXM, H200 SXM, L40S.

    Example: ppdmodel optimize results/full.json --max-compute 2
    """
    hardware = {
        "device": device,
        "bytes_per_weight": bytes_per_weight,
        "units_per_process": units_per_process,
        "link_time_s": link_time_s,
    }
    if roofline is None:
        refuse("--roofline", **hardware)
    elif ideal:
        raise InvalidInputError(
            "ideal counts layers, and roofline takes ideal times; got both; leave one out"
        )
    from ..decide.optimize import optimize

    source = rates_in(calibration)
    if not isinstance(source, Calibration):
        raise InvalidInputError(
            f"optimize must be given a calibration; got {calibration}; make one with: ppdmodel fit"
        )
    if roofline is not None:
        source = _on_paper(source, roofline, **hardware)
    with progress_bar(stays=False) as report:
        decision = optimize(
            source,
            max_compute=max_compute,
            price=price or (),
            max_depth=max_depth,
            max_units=max_units,
            ideal=ideal,
            on_progress=report,
        )
    if as_json:
        print_json(decision.to_json())
    else:
        render(decision, source.title)


def _on_paper(source: Calibration, config: Path, **options: Any) -> Calibration:
    """Match rates mapped to another model's layers, and its ideal times."""
    from ..decide.hardware import device
    from ..decide.roofline import carried_over, roofline, shape_from_config

    given = {name: value for name, value in options.items() if value is not None}
    hardware = device(given.pop("device", DEVICE))
    return carried_over(source, roofline(shape_from_config(config), hardware, **given))


def render(decision: Decision, title: str) -> None:
    """Print the choices as a table and in words, and what is not counted."""
    say(
        f"{title}: {decision.layers} layers, the best of {decision.settings} settings",
        bold=True,
    )
    say(f"({decision.n_tokens} tokens, {decision.n_prompts} prompts)\n")
    heads = ("compute", "exit", "k", "depth", "p_correct", "latency", "takes", "held out")
    print_table(heads, [(_rule(choice), *_cells(choice)) for choice in decision.choices])
    if any(choice.others for choice in decision.choices):
        say("\nGated and two-exit PPD, counted on the recorded tokens:")
        _print_others(decision)
    measured = timed(decision) and decision.costs != "ideal times"
    say(
        "\nLatency and compute are ratios to plain decoding; intervals are 95%: t intervals from "
        f"resamples of the prompts{' and of the timing' if measured else ''}, each choosing again. "
        "Held out: latency and compute of settings chosen on four fifths of the prompts, on the "
        "rest.\n"
    )
    for choice in decision.choices:
        say(sentence(choice, decision))
    for line in caveats(decision):
        say(line)
    for line in decision.left_out:
        say(f"Left out: {line}.")


def _print_others(decision: Decision) -> None:
    """The best gated and two-exit PPD under each rule."""
    print_table(
        ("compute", "policy", "latency", "takes", "held out"),
        [
            (
                _rule(choice),
                method.setting,
                interval(method.latency),
                f"{method.compute.value:.2f}×",
                _held_out(method.held_out, method.held_out_compute),
            )
            for choice in decision.choices
            for method in sorted(choice.others, key=lambda method: method.latency.value)
        ],
        left=(1,),
    )


def _held_out(latency: Interval | None, compute: Interval | None) -> str:
    if latency is None or compute is None:
        return ABSENT
    return f"{number(latency.value)}, {compute.value:.2f}×"


def timed(decision: Decision) -> bool:
    """Whether settings were compared by measured times."""
    return decision.plain_latency_s is not None


def _rule(choice: Choice) -> str:
    if choice.max_compute is not None:
        return f"≤ {choice.max_compute:g}×"
    return f"price {choice.price:g}"


def _cells(choice: Choice) -> list[str]:
    setting = choice.setting
    if setting is None:
        return [ABSENT] * 7
    return [
        str(setting.exit_layer),
        str(setting.k),
        str(setting.depth),
        number(setting.p_correct.value),
        interval(setting.normalized_latency),
        f"{setting.normalized_compute.value:.2f}×",
        _held_out(choice.held_out_latency, choice.held_out_compute),
    ]


def sentence(choice: Choice, decision: Decision) -> str:
    """One choice in plain words."""
    setting = choice.setting
    at = (
        f"At compute {_rule(choice)}"
        if choice.max_compute is not None
        else f"At {choice.price:g} layer executions per layer time saved"
    )
    if setting is None and not decision.settings:
        return f"{at}, no setting of PPD fits within the units."
    if setting is None:
        share = choice.chosen_share
        words = f"{at}, PPD does not pay: no setting is better than plain decoding"
        if share is not None and share < SURE:
            words = f"{at}, it is open whether PPD pays: no setting is better here"
        if share is not None:
            words += f" ({100 * share:.0f}% of the resamples say the same)"
        return words + "."
    latency = setting.normalized_latency
    saved, least, most = (100 * (1 - x) for x in (latency.value, latency.ci_high, latency.ci_low))
    if decision.plain_latency_s is None:
        amount = f"{decision.layers * saved / 100:.1f} of {decision.layers} layer times per token"
    else:
        plain = 1e3 * decision.plain_latency_s
        amount = f"{plain * saved / 100:.1f} of {plain:.1f} ms per token"
    words = (
        f"{at}, exit after layer {setting.exit_layer} with k = {setting.k} saves {amount}, "
        f"{saved:.1f}% [{least:.1f}, {most:.1f}]"
    )
    if choice.chosen_share is not None:
        words += f"; it is the best in {100 * choice.chosen_share:.0f}% of the resamples"
    if choice.runner_up is not None:
        second = choice.runner_up
        words += f", then layer {second.exit_layer} with k = {second.k}"
        if second.depth != setting.depth:
            words += f" and depth {second.depth}"
    if timed(decision) and choice.break_even is not None and choice.break_even >= SHOWN:
        words += (
            f". It pays from p_correct = {choice.break_even:.3f}; measured "
            f"{setting.p_correct.value:.3f}"
        )
    return words + "."


def caveats(decision: Decision) -> list[str]:
    """What is not counted, and tensor parallelism on the same units."""
    if timed(decision):
        lines = [_beside_split(decision)]
        if decision.costs == "ideal times":
            lines.append(
                "Ideal: times from weights and data sheets, match rates of "
                f"{decision.provenance['rates_of']} at the same share of the depth."
            )
        return lines
    lines = [
        "\nIn layer units: heads, the exit's own head, starting and promoting sub-processes and "
        "units that slow each other down are not counted, so a real run saves less."
    ]
    settings = [choice.setting for choice in decision.choices if choice.setting]
    if any((s.depth + 1) * s.exit_layer < decision.layers for s in settings):
        lines.append(
            "A chosen exit lies so early that its latency also assumes independent matches."
        )
    return lines


def _beside_split(decision: Decision) -> str:
    split = decision.split_latency
    assert split is not None
    assert decision.plain_latency_s is not None
    found = [c.setting.normalized_latency for c in decision.choices if c.setting]
    milliseconds = 1e3 * split * decision.plain_latency_s
    words = (
        f"\nThe same units with every product split over all of them take {milliseconds:.1f} ms, "
        f"{split:.3f} of plain decoding: "
    )
    if not found:
        return words + ("splitting pays." if split < 1 else "neither pays here.")
    best = min(found, key=lambda latency: latency.value)
    if best.ci_low <= split <= best.ci_high:
        return words + "the interval does not tell them apart."
    return words + ("PPD is faster." if best.value < split else "splitting is faster.")
