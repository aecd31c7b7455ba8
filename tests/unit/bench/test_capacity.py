"""The model of docs/capacity.md, with the figures that are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.capacity.__main__ import BILLED_IMAGES, DOCUMENT, IMAGES, RATES, fill_in, make_tables, read_numbers
from bench.capacity.costs import BatchCost, Costs, read_costs
from bench.capacity.inputs import Inputs, Prices, change
from bench.capacity.model import compute_flow, compute_limits, compute_money, compute_stock
from bench.capacity.report import number
from bench.figures import Figures


@pytest.fixture(scope="module")
def costs() -> Costs:
    return read_costs(Figures.load())[0]


def test_document_has_what_the_command_prints() -> None:
    tables = make_tables(
        Figures.load(),
        Inputs(),
        Prices(),
        rates=read_numbers(RATES),
        images=read_numbers(IMAGES),
        billed=BILLED_IMAGES,
    )
    document = DOCUMENT.read_text()
    assert fill_in(document, tables) == document, "python -m bench.capacity --write"


def test_cost_of_a_batch_goes_through_both_measurements() -> None:
    cost = BatchCost(alone=0.8, in_batch=0.2, batch_size=16)
    assert cost.per_item(1) == pytest.approx(0.8)
    assert cost.per_item(16) == pytest.approx(0.2)
    assert 0 < cost.per_item(256) < 0.2


def test_ten_times_the_uploads_need_ten_times_the_decoders(costs: Costs) -> None:
    small, large = (compute_flow(rate, costs, Inputs()) for rate in (1_000, 10_000))
    assert large.decoder_cores == pytest.approx(10 * small.decoder_cores)
    assert large.puts == pytest.approx(10 * small.puts)
    assert large.commits <= 10 * small.commits * 1.01
    assert large.hosts > 5 * small.hosts


def test_pooled_connections_are_fewer_than_those_without(costs: Costs) -> None:
    flow = compute_flow(10_000, costs, Inputs())
    assert flow.pooled_connections < flow.direct_connections
    assert flow.direct_connections == (flow.api_processes + flow.workers) * Inputs().connections


def test_a_limit_is_where_its_part_is_full(costs: Costs) -> None:
    inputs = replace(Inputs(), utilisation=1.0)
    limits = compute_limits(costs, inputs)
    assert limits == sorted(limits, key=lambda limit: limit.uploads_per_s)
    [redis] = [limit for limit in limits if limit.part.startswith("One Redis")]
    assert compute_flow(redis.uploads_per_s, costs, inputs).redis_cores == pytest.approx(1, rel=0.1)


def test_disk_grows_with_the_images_and_with_what_each_has(costs: Costs) -> None:
    inputs = Inputs()
    million, billion = (compute_stock(count, costs, inputs) for count in (1e6, 1e9))
    assert billion.index_gb == pytest.approx(1000 * million.index_gb)
    without_tags = compute_stock(1e9, costs, replace(inputs, tags=0))
    assert without_tags.index_gb < billion.index_gb
    assert without_tags.random_index_gb == billion.random_index_gb


def test_prices_change_the_bill(costs: Costs) -> None:
    flow, stock = compute_flow(1, costs, Inputs()), compute_stock(1e9, costs, Inputs())
    bill = compute_money(flow, stock, Inputs(), Prices())
    cheaper = compute_money(flow, stock, Inputs(), change(Prices(), ["store_gb_month=0"]))
    assert cheaper.objects == 0
    assert cheaper.total == pytest.approx(bill.total - bill.objects)


def test_unknown_inputs_are_refused() -> None:
    assert change(Inputs(), ["share_l=0.4", "renditions=8"]).share_l == 0.4
    with pytest.raises(ValueError, match="unknown name 'size'; the names are share_s, "):
        change(Inputs(), ["size=1"])


def test_tables_are_written_into_their_places() -> None:
    document = "a\n<!-- table money -->\nold\n<!-- end -->\nb\n"
    assert fill_in(document, {"money": "new"}) == "a\n<!-- table money -->\nnew\n<!-- end -->\nb\n"
    with pytest.raises(ValueError, match="has no place for the table prices"):
        fill_in(document, {"prices": ""})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.000001, "1.0e-06"),
        (0.0347, "0.035"),
        (3.44, "3.4"),
        (9.96, "10"),
        (34.4, "34"),
        (3449.0, "3,400"),
        (3449, "3,449"),
    ],
)
def test_only_counts_have_more_than_two_digits(value: float, text: str) -> None:
    assert number(value) == text
