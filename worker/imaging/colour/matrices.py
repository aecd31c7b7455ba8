"""3 x 3 matrices between light and XYZ, by rows."""

from __future__ import annotations

from collections.abc import Sequence

Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]

D50: Vector = (0.9642, 1.0, 0.8249)

_BRADFORD: Matrix = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))
# Below this determinant the inverse is not useful for colours.
_MIN_DETERMINANT = 1e-6


def apply(matrix: Matrix, vector: Sequence[float]) -> Vector:
    x, y, z = (sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix)
    return x, y, z


def multiply(left: Matrix, right: Matrix) -> Matrix:
    columns = transpose(right)
    first, second, third = (apply(columns, row) for row in left)
    return first, second, third


def transpose(matrix: Matrix) -> Matrix:
    (a, b, c), (d, e, f), (g, h, i) = matrix
    return (a, d, g), (b, e, h), (c, f, i)


def invert(matrix: Matrix) -> Matrix:
    """Raises ValueError if there is no inverse."""
    (a, b, c), (d, e, f), (g, h, i) = matrix
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    if abs(determinant) < _MIN_DETERMINANT:
        raise ValueError("the matrix has no inverse")
    rows = (
        (e * i - f * h, c * h - b * i, b * f - c * e),
        (f * g - d * i, a * i - c * g, c * d - a * f),
        (d * h - e * g, b * g - a * h, a * e - b * d),
    )
    first, second, third = ((x / determinant, y / determinant, z / determinant) for x, y, z in rows)
    return first, second, third


def colorants(chromaticities: Sequence[float]) -> Matrix:
    """Returns the matrix from linear light to XYZ relative to D50 (ICC.1, Annex E: Bradford).

    The parameters are x and y of red, green, blue and white. Raises ValueError if the primaries span no colours.
    """
    red, green, blue, white = (
        (x, y, 1 - x - y) for x, y in zip(chromaticities[::2], chromaticities[1::2], strict=True)
    )
    if white[1] <= 0:
        raise ValueError("white has no brightness")
    target = (white[0] / white[1], 1.0, white[2] / white[1])
    primaries = transpose((red, green, blue))
    amounts = apply(invert(primaries), target)
    return multiply(_adaptation(target), multiply(primaries, _diagonal(amounts)))


def _adaptation(white: Vector) -> Matrix:
    """Returns the matrix from this white to D50."""
    source, target = apply(_BRADFORD, white), apply(_BRADFORD, D50)
    if min(source) <= 0:
        raise ValueError("white is no light")
    ratios = _diagonal([there / here for here, there in zip(source, target, strict=True)])
    return multiply(invert(_BRADFORD), multiply(ratios, _BRADFORD))


def _diagonal(values: Sequence[float]) -> Matrix:
    a, b, c = values
    return (a, 0.0, 0.0), (0.0, b, 0.0), (0.0, 0.0, c)
