from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.renditions.geometry import Place, Size, TooLarge, place, plan, size_after_rotation
from service.renditions.transformation import MAX_PIXELS, MAX_SIDE, Gravity, Transformation

sides = st.integers(1, 9_000)
small_sides = st.integers(1, 3_000)
gravities: st.SearchStrategy[Gravity] = st.one_of(
    st.sampled_from(["centre", "north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest"]),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
often = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


def transform(**fields: object) -> Transformation:
    return Transformation(format="png", quality=80, **fields)  # type: ignore[arg-type]


def same_aspect(size: Size, source: Size, *, within_px: float = 1) -> bool:
    """Whether each side follows from the other within some pixels. A side of 1 pixel may have been shorter."""
    ratio = source.width / source.height
    by_width, by_height = size.width / ratio, size.height * ratio
    return (
        abs(by_width - size.height) <= within_px
        or abs(by_height - size.width) <= within_px
        or (size.height == 1 and by_width < 1)
        or (size.width == 1 and by_height < 1)
    )


@often
@given(sides, sides, small_sides, small_sides, st.sampled_from(["contain", "scale-down", "pad"]), st.booleans())
def test_contain_fits_the_box_in_proportion(
    width: int, height: int, box_width: int, box_height: int, fit: str, enlarge: bool
) -> None:
    source = Size(width, height)
    result = plan(width, height, transform(width=box_width, height=box_height, fit=fit, enlarge=enlarge))
    assert 1 <= result.scaled.width <= box_width
    assert 1 <= result.scaled.height <= box_height
    assert same_aspect(result.scaled, source)
    if not enlarge:
        assert result.scaled.width <= width
        assert result.scaled.height <= height
    if enlarge or width >= box_width or height >= box_height:  # it touches the box
        assert result.scaled.width == box_width or result.scaled.height == box_height
    else:
        assert result.scaled == source
    assert result.size == ((box_width, box_height) if fit == "pad" else result.scaled)


@often
@given(sides, sides, small_sides, small_sides, st.booleans(), gravities)
def test_cover_fills_the_box(
    width: int, height: int, box_width: int, box_height: int, enlarge: bool, gravity: Gravity
) -> None:
    result = plan(
        width, height, transform(width=box_width, height=box_height, fit="cover", enlarge=enlarge, gravity=gravity)
    )
    if enlarge or (width >= box_width and height >= box_height):
        assert result.size == (box_width, box_height)
    else:
        assert same_aspect(result.size, Size(box_width, box_height))
    assert result.scaled.width >= result.size.width >= 1
    assert result.scaled.height >= result.size.height >= 1
    assert result.scaled.width == result.size.width or result.scaled.height == result.size.height
    if not enlarge:
        assert result.scaled.width <= width
        assert result.scaled.height <= height
    assert result.placed_at is not None
    assert 0 <= result.placed_at.left <= result.scaled.width - result.size.width
    assert 0 <= result.placed_at.top <= result.scaled.height - result.size.height


@often
@given(sides, sides, small_sides, st.booleans(), st.booleans())
def test_one_side_determines_the_other(width: int, height: int, side: int, enlarge: bool, by_height: bool) -> None:
    fields = {"height": side} if by_height else {"width": side}
    try:
        result = plan(width, height, transform(**fields, enlarge=enlarge))
    except TooLarge as error:
        assert max(error.size) > MAX_SIDE or error.size.width * error.size.height > MAX_PIXELS  # noqa: PT017
        return
    own, result_side = (height, result.size.height) if by_height else (width, result.size.width)
    assert result_side == (side if enlarge else min(side, own))
    assert same_aspect(result.size, Size(width, height))
    assert result.scaled == result.size


@often
@given(sides, sides, small_sides, small_sides, st.booleans())
def test_fill_has_the_proportions_of_the_box(
    width: int, height: int, box_width: int, box_height: int, enlarge: bool
) -> None:
    result = plan(width, height, transform(width=box_width, height=box_height, fit="fill", enlarge=enlarge))
    assert result.scaled == result.size
    assert same_aspect(result.size, Size(box_width, box_height))
    if enlarge:
        assert result.size == (box_width, box_height)
    else:
        assert result.size.width <= min(width, box_width)
        assert result.size.height <= min(height, box_height)


@often
@given(st.integers(1, 6000), st.integers(1, 6000), st.floats(0.1, 1000), st.booleans())
def test_percent_scales_both_sides(width: int, height: int, percent: float, enlarge: bool) -> None:
    try:
        result = plan(width, height, transform(percent=percent, enlarge=enlarge))
    except TooLarge:
        assert enlarge
        assert percent > 100
        return
    scale = percent / 100 if enlarge else min(1.0, percent / 100)
    assert abs(result.size.width - max(1, width * scale)) <= 0.51
    assert abs(result.size.height - max(1, height * scale)) <= 0.51


@often
@given(sides, sides, small_sides, small_sides, gravities)
def test_crop_lies_inside_the_picture(
    width: int, height: int, crop_width: int, crop_height: int, gravity: Gravity
) -> None:
    result = plan(width, height, transform(crop=(crop_width, crop_height), gravity=gravity, percent=100.0))
    assert result.cropped == (min(width, crop_width), min(height, crop_height))
    assert result.size == result.cropped
    assert result.cropped_at is not None
    assert 0 <= result.cropped_at.left <= width - result.cropped.width
    assert 0 <= result.cropped_at.top <= height - result.cropped.height


def test_smart_crop_needs_something_to_cut() -> None:
    smart = transform(width=50, height=50, fit="cover", gravity="smart")
    assert plan(100, 50, smart).placed_at is None
    assert plan(100, 100, smart).placed_at == (0, 0)
    assert plan(100, 100, transform(crop=(50, 50), gravity="smart")).cropped_at is None


def test_focal_point_comes_near_the_middle() -> None:
    inner, outer = Size(20, 20), Size(100, 20)
    assert [place(inner, outer, (part, 0.5)) for part in (0, 0.05, 0.3, 0.5, 0.95, 1)] == [
        Place(left, 0) for left in (0, 0, 20, 40, 80, 80)
    ]


def test_too_large_result_is_refused() -> None:
    with pytest.raises(TooLarge) as caught:
        plan(100, 100, transform(width=MAX_SIDE + 1, enlarge=True))
    assert caught.value.size == (MAX_SIDE + 1, MAX_SIDE + 1)
    with pytest.raises(TooLarge):
        plan(100, 100, transform(width=8000, height=8000, fit="pad"))
    assert plan(100, 100, transform(width=8000, height=6000, fit="pad")).size == (8000, 6000)


@pytest.mark.parametrize(("rotate", "size"), [(0, (3, 2)), (90, (2, 3)), (180, (3, 2)), (270, (2, 3))])
def test_quarter_turn_swaps_the_sides(rotate: int, size: tuple[int, int]) -> None:
    assert size_after_rotation(3, 2, transform(rotate=rotate)) == size
