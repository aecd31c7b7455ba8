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


def asked(**words: object) -> Transformation:
    return Transformation(format="png", quality=80, **words)  # type: ignore[arg-type]


def same_aspect(size: Size, source: Size, *, within_px: float = 1) -> bool:
    """Whether one side, computed from the other, is the side within so many pixels; one of 1 pixel may be wider."""
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
def test_a_picture_lies_inside_of_its_box_and_keeps_its_shape(
    width: int, height: int, box_width: int, box_height: int, fit: str, enlarge: bool
) -> None:
    source = Size(width, height)
    found = plan(width, height, asked(width=box_width, height=box_height, fit=fit, enlarge=enlarge))
    assert 1 <= found.scaled.width <= box_width
    assert 1 <= found.scaled.height <= box_height
    assert same_aspect(found.scaled, source)
    if not enlarge:
        assert found.scaled.width <= width
        assert found.scaled.height <= height
    if enlarge or width >= box_width or height >= box_height:  # it touches the box
        assert found.scaled.width == box_width or found.scaled.height == box_height
    else:
        assert found.scaled == source
    assert found.size == ((box_width, box_height) if fit == "pad" else found.scaled)


@often
@given(sides, sides, small_sides, small_sides, st.booleans(), gravities)
def test_a_cover_fills_its_box_from_inside_of_the_picture(
    width: int, height: int, box_width: int, box_height: int, enlarge: bool, gravity: Gravity
) -> None:
    found = plan(
        width, height, asked(width=box_width, height=box_height, fit="cover", enlarge=enlarge, gravity=gravity)
    )
    if enlarge or (width >= box_width and height >= box_height):
        assert found.size == (box_width, box_height)
    else:
        assert same_aspect(found.size, Size(box_width, box_height))
    assert found.scaled.width >= found.size.width >= 1
    assert found.scaled.height >= found.size.height >= 1
    assert found.scaled.width == found.size.width or found.scaled.height == found.size.height
    if not enlarge:
        assert found.scaled.width <= width
        assert found.scaled.height <= height
    assert found.placed_at is not None
    assert 0 <= found.placed_at.left <= found.scaled.width - found.size.width
    assert 0 <= found.placed_at.top <= found.scaled.height - found.size.height


@often
@given(sides, sides, small_sides, st.booleans(), st.booleans())
def test_one_side_decides_the_other(width: int, height: int, side: int, enlarge: bool, by_height: bool) -> None:
    words = {"height": side} if by_height else {"width": side}
    try:
        found = plan(width, height, asked(**words, enlarge=enlarge))
    except TooLarge as error:
        assert max(error.size) > MAX_SIDE or error.size.width * error.size.height > MAX_PIXELS  # noqa: PT017
        return
    own, given_side = (height, found.size.height) if by_height else (width, found.size.width)
    assert given_side == (side if enlarge else min(side, own))
    assert same_aspect(found.size, Size(width, height))
    assert found.scaled == found.size


@often
@given(sides, sides, small_sides, small_sides, st.booleans())
def test_a_fill_has_the_shape_of_the_box(
    width: int, height: int, box_width: int, box_height: int, enlarge: bool
) -> None:
    found = plan(width, height, asked(width=box_width, height=box_height, fit="fill", enlarge=enlarge))
    assert found.scaled == found.size
    assert same_aspect(found.size, Size(box_width, box_height))
    if enlarge:
        assert found.size == (box_width, box_height)
    else:
        assert found.size.width <= min(width, box_width)
        assert found.size.height <= min(height, box_height)


@often
@given(st.integers(1, 6000), st.integers(1, 6000), st.floats(0.1, 1000), st.booleans())
def test_percent_counts_of_both_sides(width: int, height: int, percent: float, enlarge: bool) -> None:
    try:
        found = plan(width, height, asked(percent=percent, enlarge=enlarge))
    except TooLarge:
        assert enlarge
        assert percent > 100
        return
    scale = percent / 100 if enlarge else min(1.0, percent / 100)
    assert abs(found.size.width - max(1, width * scale)) <= 0.51
    assert abs(found.size.height - max(1, height * scale)) <= 0.51


@often
@given(sides, sides, small_sides, small_sides, gravities)
def test_a_crop_lies_inside_of_the_picture(
    width: int, height: int, crop_width: int, crop_height: int, gravity: Gravity
) -> None:
    found = plan(width, height, asked(crop=(crop_width, crop_height), gravity=gravity, percent=100.0))
    assert found.cropped == (min(width, crop_width), min(height, crop_height))
    assert found.size == found.cropped
    assert found.cropped_at is not None
    assert 0 <= found.cropped_at.left <= width - found.cropped.width
    assert 0 <= found.cropped_at.top <= height - found.cropped.height


def test_the_picture_decides_where_it_is_cut_only_where_something_is_left_to_decide() -> None:
    smart = asked(width=50, height=50, fit="cover", gravity="smart")
    assert plan(100, 50, smart).placed_at is None
    assert plan(100, 100, smart).placed_at == (0, 0)
    assert plan(100, 100, asked(crop=(50, 50), gravity="smart")).cropped_at is None


def test_a_focal_point_is_brought_as_near_to_the_middle_as_can_be() -> None:
    inner, outer = Size(20, 20), Size(100, 20)
    assert [place(inner, outer, (part, 0.5)) for part in (0, 0.05, 0.3, 0.5, 0.95, 1)] == [
        Place(left, 0) for left in (0, 0, 20, 40, 80, 80)
    ]


def test_a_result_that_is_too_large_is_refused_with_its_size() -> None:
    with pytest.raises(TooLarge) as caught:
        plan(100, 100, asked(width=MAX_SIDE + 1, enlarge=True))
    assert caught.value.size == (MAX_SIDE + 1, MAX_SIDE + 1)
    with pytest.raises(TooLarge):
        plan(100, 100, asked(width=8000, height=8000, fit="pad"))
    assert plan(100, 100, asked(width=8000, height=6000, fit="pad")).size == (8000, 6000)


@pytest.mark.parametrize(("rotate", "size"), [(0, (3, 2)), (90, (2, 3)), (180, (3, 2)), (270, (2, 3))])
def test_a_quarter_turn_swaps_the_sides(rotate: int, size: tuple[int, int]) -> None:
    assert size_after_rotation(3, 2, asked(rotate=rotate)) == size
