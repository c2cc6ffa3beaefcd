"""One synapse at a time, in Python numbers: what rules with traces do."""

from __future__ import annotations

from dataclasses import dataclass, field

Trace = dict[str, float]


@dataclass
class Synapse:
    """One synapse under a rule, by the equations."""

    form: str
    alpha: float = 0.0
    rate: float = 0.0
    clip: str | None = None
    bound: float = 1.0
    tau: float = 1.0
    trace: Trace = field(default_factory=lambda: {"hebb": 0.0, "eligibility": 0.0})

    def change(self, y: list[float], x: list[float], m: list[float]) -> float:
        """Change of the weight for rows of post, pre and third factor; moves the trace."""
        h, e, rows = self.trace["hebb"], self.trace["eligibility"], len(y)
        product = sum(y[b] * x[b] for b in range(rows)) / rows
        mean = sum(m) / rows
        if self.form == "eligibility":
            e = (1 - 1 / self.tau) * e + product
            self.trace["eligibility"] = e
            return self.rate * mean * e
        if self.form == "decay":
            new = (1 - self.rate) * h + self.rate * product
        elif self.form == "oja":
            new = h + self.rate * sum(y[b] * (x[b] - y[b] * h) for b in range(rows)) / rows
        elif self.form == "clip":
            new = self.cut(h + self.rate * product)
        elif self.form == "simple":
            new = self.moved(h, sum(m[b] * y[b] * x[b] for b in range(rows)) / rows)
        else:
            new = self.moved(h, mean * e)
            self.trace["eligibility"] = (1 - self.rate) * e + self.rate * product
        self.trace["hebb"] = new
        return self.alpha * (new - h)

    def moved(self, h: float, d: float) -> float:
        if self.clip == "hard":
            return self.cut(h + d)
        if self.clip == "soft":
            up, down = max(d, 0.0), min(d, 0.0)
            return self.cut(h + up * (1 - h / self.bound) + down * (1 + h / self.bound))
        return h + d

    def cut(self, h: float) -> float:
        return max(-self.bound, min(self.bound, h))
