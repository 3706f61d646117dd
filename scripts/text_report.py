"""What scripts/text_quality.py has measured, as people read it."""

from typing import Any

from benchmark_measure import Figure


def markdown(report: dict[str, Any], figures: list[Figure]) -> str:
    """A row for each ranking, under what they were made with."""
    machine, arguments = report["machine"], report["arguments"]
    lines = [
        f"{arguments['documents']:,} documents, {arguments['queries']:,} queries. {machine['cpu']}, {machine['cores']} "
        f"cores; models in {arguments['precision']}; {report['date'][:10]}. p is that of a paired randomisation test.",
        "",
        f"    {report['command']}",
        "",
        "| | k | nDCG@10 | MRR@10 | Recall@100 | MRR@10 over cosine (p) | one query, one thread, ms |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    found: dict[str, dict[str, float]] = {}
    for figure in figures:
        found.setdefault(figure.setting, {})[figure.measure] = figure.value
    for name, values in found.items():
        if "RR@10" in values:
            cells = [f"{values[measure]:.4f}" for measure in ("nDCG@10", "RR@10", "R@100")]
            ms = f"{values['one query']:.2f}" if "one query" in values else ""
            lines.append(f"| {name} | {values['k']:.0f} | {' | '.join(cells)} | {_change(values, 'cosine')} | {ms} |")
    lines += ["", *_others(found)]
    lines += ["", *(f"{name}: {v['documents']:,.0f} documents/s" for name, v in found.items() if "documents" in v)]
    return "\n".join(lines) + "\n"


def _change(values: dict[str, float], other: str) -> str:
    measure = f"RR@10 over {other}"
    if measure not in values:
        return ""
    p = values.get(f"{measure}, p")
    return f"{values[measure]:+.4f}" + ("" if p is None else f" ({p:.4f})" if p >= 1e-3 else " (< 0.001)")


def _others(found: dict[str, dict[str, float]]) -> list[str]:
    """A line for each comparison of MRR@10 with another ranking than that by the cosine of the base."""
    begin = "RR@10 over "
    return [
        f"{name}, MRR@10 over {measure.removeprefix(begin)}: {_change(values, measure.removeprefix(begin))}"
        for name, values in found.items()
        for measure in values
        if measure.startswith(begin) and not measure.endswith((", p", begin + "cosine"))
    ]
