"""The page's view of ``dreamgym audit --long`` (``fidelity.json``): three charts, the figures with what they mean, Theorem 1."""

from typing import Any

from dreamgym.report.chart import Chart, Series, whole_ticks

Json = dict[str, Any]
SHARES = [0.0, 0.25, 0.5, 0.75, 1.0]
DIAGONAL = [(0.0, 0.0), (1.0, 1.0)]
FIGURES = (
    ("Rank correlation (Spearman)", "spearman", "of dreamed and real success over policies: does the dream order them rightly; 1 is best"),
    ("Done", "done_accuracy", "share of steps whose end, or going on, is predicted"),
    ("Next state, all determined steps", "next_state_all", "change and end exactly right"),
    ("Uncertainty finds errors (AUROC)", "uncertainty_auroc", "probability that a wrong step's draws disagree more than a right one's"),
)


def long_audit_view(found: Json | None) -> Json | None:
    """Charts and rows for the template; None where the long audit has not run. ``KeyError`` names a field that is not there."""
    if found is None:
        return None
    calibration, facts, lasting = found["calibration"], found["facts_per_1000_steps"], found["facts_over_episodes"]
    futile = found["invalid_actions"]
    rows = [(title, found[key], why) for title, key, why in FIGURES]
    rows += [
        ("Futile actions, precision", futile["precision"], "of the steps that the model says change nothing, the share that do"),
        ("Futile actions, recall", futile["recall"], f"of {futile['n']} steps that change nothing, the share that the model says so of"),
        ("Calibration error (ECE)", calibration["ece"], f"of the share of draws that say won, on {calibration['n']} steps that could end"),
        ("Reward error, mean", found["epsilon_r"]["mean"], "|real - predicted| reward of a step; an invalid step counts 1"),
        ("Total variation, mean", found["epsilon_p"]["mean"], "between real and predicted next states; invalid is a state of its own"),
        ("Changed without cause", facts["changed_without_cause"], "things per 1000 steps that the model changes and reality does not"),
        ("Left unchanged", facts["left_unchanged"], "the reverse, per 1000 steps"),
        ("Contradictions", facts["contradictions"], "replies per 1000 steps that do not fit the state"),
        (
            "Episodes in which facts last",
            lasting["without_any"],
            f"share of {lasting['episodes']} replayed episodes without a thing that changes while the action does not name it and reality "
            "leaves it alone",
        ),
    ]
    if (noise := found.get("simulator_variance_share")) is not None:
        why = "of the variance of a group's rewards, the part that stays when the same actions are dreamed again: the simulator's own dice"
        rows.append(("Simulator's share of variance", noise, why))
    return {"found": found, "rows": rows, "charts": [depth_chart(found), calibration_chart(found), policy_chart(found)]}


def depth_chart(found: Json) -> Chart:
    """How agreement decays with the number of dreamed steps."""
    points = [(float(row["depth"]), float(row["agree"])) for row in found["by_depth"]]
    end = max((x for x, _ in points), default=1.0)
    series = [Series("share of the episodes that long, still in the real game's state", "s-dream", "ring", points, joined=True)]
    return Chart("Agreement by depth: the same actions, dreamed and real", "steps dreamed so far", end, whole_ticks(end), series)


def calibration_chart(found: Json) -> Chart:
    """Stated against real shares of success."""
    points = [(float(b["confidence"]), float(b["won"])) for b in found["calibration"]["bins"]]
    series = [Series("steps that really won, by the share of draws that say so", "s-real", "triangle", points), _ideal()]
    return Chart("Calibration of success", "share of draws that say won", 1.0, SHARES, series)


def policy_chart(found: Json) -> Chart:
    """Dreamed and real success of each policy."""
    points = [(float(p["dream"]), float(p["real"])) for p in found["policies"].values() if p["dream"] is not None]
    series = [Series("policies: real success, by dreamed success", "s-real", "triangle", points), _ideal()]
    return Chart("Policies: dreamed and real success", "dreamed success (no result)", 1.0, SHARES, series)


def _ideal() -> Series:
    return Series("where both are equal", "s-idle", "ring", DIAGONAL, joined=True)
