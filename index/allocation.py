"""Which projected dimensions share a 4-bit digit: reverse water-filling with digits for water.

A document's code is a string of 4-bit digits, because that is what a processor looks up sixteen or more of in one
instruction (Andre, Kermarrec & Le Scouarnec, "Cache locality is not enough", VLDB 2015). The dimensions of a projection
differ in energy by factors of thousands, so digits are spent where they take away most error: the first dimensions get
two digits each, the next one, then two dimensions share a digit, then four, and the rest goes unsaid. That a dimension
is worth half a bit more when its energy doubles is rate-distortion theory (Cover & Thomas, "Elements of Information
Theory", 2006, section 10.3.3); product quantisation gives all dimensions the same. On WordNet Gaussians, 96 digits so
spent find what 128 digits for 128 dimensions find.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["GROUP", "Allocation"]

GROUP = 4
"""The most dimensions that share a digit: one bit each."""
MAX_DOUBLE = 16
"""The most dimensions that get two digits."""

# What is left of a normal variable's variance by its best quantiser of 256, 16, 4 and 2 levels: Max, "Quantizing for
# minimum distortion", 1960, Table I, and for 256 levels (two digits, the second of which codes what the first leaves,
# uniform within its cell) a sixteenth squared of that.
LEFT = {8: 0.01154 / 256, 4: 0.01154, 2: 0.1175, 1: 0.3634}


@dataclass(frozen=True, slots=True)
class Allocation:
    """How many dimensions, in descending order of energy, have two digits, one, half of one and a quarter."""

    double: int
    single: int
    pairs: int
    quads: int

    @classmethod
    def best(cls, energies: npt.NDArray[np.float64], digits: int) -> "Allocation":
        """The allocation of at most `digits` digits that leaves least of the energies (r,), which descend."""
        r = len(energies)
        sums = np.concatenate([[0.0], np.cumsum(energies)])
        best, least = cls(0, 0, 0, 0), np.inf
        for double in range(min(r, digits // 2, MAX_DOUBLE) + 1):
            rest = digits - 2 * double
            single, pairs = np.meshgrid(np.arange(rest + 1), np.arange(rest + 1), indexing="ij")
            quads = rest - single - pairs
            first = np.minimum(double + single, r)
            second = np.minimum(first + 2 * pairs, r)
            third = np.minimum(second + GROUP * np.maximum(quads, 0), r)
            left = LEFT[8] * sums[double] + LEFT[4] * (sums[first] - sums[double])
            left += LEFT[2] * (sums[second] - sums[first]) + LEFT[1] * (sums[third] - sums[second])
            left += sums[r] - sums[third]
            left = np.where(quads >= 0, left, np.inf)
            place = np.unravel_index(int(np.argmin(left)), left.shape)
            if left[place] < least:
                least = float(left[place])
                best = cls(double, int(single[place]), int(pairs[place]), int(quads[place]))
        return best

    def left(self, energies: npt.NDArray[np.float64]) -> float:
        """What these digits leave of the energies: the expected squared error of a score."""
        bounds = np.cumsum([self.double, self.single, 2 * self.pairs, GROUP * self.quads])
        parts = np.split(energies, np.minimum(bounds, len(energies)))
        shares = (LEFT[8], LEFT[4], LEFT[2], LEFT[1], 1.0)
        return float(sum(share * part.sum() for share, part in zip(shares, parts, strict=True)))

    def groups(self, dimensions: int) -> list[list[int]]:
        """The dimensions of each digit, those of the second digits of the first dimensions after their first ones.

        Dimensions that share a digit are far apart in energy, so that digits say equally much.
        """
        groups = [[dimension] for dimension in range(self.double)] * 2
        groups += [[self.double + place] for place in range(self.single)]
        start = self.double + self.single
        for count, size in ((self.pairs, 2), (self.quads, GROUP)):
            # Down one column and up the next: every group has of the large and of the small.
            rows = np.arange(count * size).reshape(size, count)
            rows[1::2] = rows[1::2, ::-1]
            groups += [(start + column).tolist() for column in rows.T]
            start += count * size
        return [[dimension for dimension in group if dimension < dimensions] for group in groups]
