"""The measured costs: which figures of the benchmark the computation uses."""

from __future__ import annotations

from dataclasses import dataclass, fields

from bench.figures import Figures, Table, first_number, parts
from bench.targets import DAGUERRE, DAGUERRE_S3

SIZES = ("s", "m", "l")
_CPU, _PEAK = "CPU ms per request", "peak MB of one process"
_RELATIONS = {"images": "an image", "image_tags": "a tag", "renditions": "a rendition"}


@dataclass(frozen=True, slots=True)
class BatchCost:
    """A cost that has a part for each batch, and a part for each row or job."""

    alone: float
    in_batch: float
    batch_size: int

    def per_item(self, batch_size: float) -> float:
        """Returns the cost of one item in a batch of this size: a straight line through the two measurements."""
        per_batch = (self.alone - self.in_batch) / (1 - 1 / self.batch_size)
        return max(0.0, self.alone - per_batch + per_batch / max(1.0, batch_size))


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure with its unit and the table that it comes from."""

    name: str
    text: str
    source: Table


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU is in ms, memory in MB, rows in bytes. Dictionaries by size have the photographs s, m and l."""

    kb: dict[str, float]
    api: dict[str, float]
    worker: dict[str, float]
    decoder: dict[str, float]
    rendition_api: float
    rendition_worker: float
    rendition_queue: float
    rendition_decoder: dict[str, float]
    rendition_kb: float
    from_memory: float
    from_disk: float
    read_api: float
    read_postgres: float
    jobs_per_s: float
    image_rows: BatchCost
    rendition_rows: BatchCost
    image_wal: float
    image_wal_first: float
    rendition_wal_first: float
    queue: BatchCost
    job_bytes: float
    row_bytes: dict[str, float]
    refresh_ns: float
    sum_ns: float
    api_mb: float
    worker_mb: float
    decoder_mb: float
    connection_mb: float


def read_costs(figures: Figures) -> tuple[Costs, list[Measured]]:
    """Returns the costs, and the figures that they are, in the order of the document. Raises FigureMissing."""
    reader = _Reader(figures)
    costs = {field.name: getattr(reader, field.name)() for field in fields(Costs)}
    return Costs(**costs), reader.measured


class _Reader:
    """A method for each field of Costs."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self.measured: list[Measured] = []

    def _note(self, name: str, text: str, source: Table) -> None:
        self.measured.append(Measured(name, text, source))

    def _uploads(self, size: str) -> Table:
        return self._figures.table(f"Uploads {size}")

    def _cpu_of_uploads(self, part: str, name: str) -> dict[str, float]:
        by_size = {}
        for size in SIZES:
            table = self._uploads(size)
            by_size[size] = parts(table.cell(DAGUERRE, _CPU))[part]
        self._note(f"{name}, CPU for an upload of s, m, l, on a disk", _list_ms(by_size), table)
        return by_size

    def kb(self) -> dict[str, float]:
        by_size = {}
        for size in SIZES:
            table = self._uploads(size)
            by_size[size] = first_number(table.title.split(",")[1])
        self._note("Bytes of an upload of s, m, l", ", ".join(f"{kb:.0f}" for kb in by_size.values()) + " KB", table)
        return by_size

    def api(self) -> dict[str, float]:
        """The cost on the disk, times the ratio of both in the run that measured them in turns."""
        on_disk, ratios = self._cpu_of_uploads("api", "API"), {}
        for size in SIZES:
            table = self._figures.table(f"Uploads {size}, on S3")
            s3_ms, disk_ms = (parts(table.cell(service, _CPU))["api"] for service in (DAGUERRE_S3, DAGUERRE))
            ratios[size] = s3_ms / disk_ms
        text = ", ".join(f"{ratio:.2f}" for ratio in ratios.values()) + " times"
        self._note("API, CPU on an object store, compared with the disk", text, table)
        return {size: ms * ratios[size] for size, ms in on_disk.items()}

    def worker(self) -> dict[str, float]:
        return self._cpu_of_uploads("worker", "Worker")

    def decoder(self) -> dict[str, float]:
        return self._cpu_of_uploads("libvips", "Decoder")

    def _rendition(self, part: str, name: str) -> float:
        table = self._figures.table("Uncached, ", "16 in flight")
        cpu_ms = parts(table.cell(DAGUERRE, _CPU))[part]
        self._note(f"{name}, CPU for a new rendition", f"{cpu_ms:.2f} ms", table)
        return cpu_ms

    def rendition_api(self) -> float:
        return self._rendition("api", "API")

    def rendition_worker(self) -> float:
        return self._rendition("worker", "Worker")

    def rendition_queue(self) -> float:
        return self._rendition("valkey", "Redis")

    def rendition_decoder(self) -> dict[str, float]:
        table = self._figures.table("Floor")
        column = table.columns.index("CPU ms per file")
        by_size = {}
        for size in SIZES:
            [row] = [row for row in table.rows if row[0].startswith(f"{size},") and row[1].startswith("a whole")]
            by_size[size] = first_number(row[column])
        self._note("Decoder, CPU for a rendition of s, m, l, 300 pixels wide", _list_ms(by_size), table)
        return by_size

    def rendition_kb(self) -> float:
        table = self._figures.table("Photographs, ", "16 in flight")
        kb = first_number(table.title.split("bytes: Daguerre ")[1]) / 1000
        self._note("Bytes of a rendition, mean of 100, 512 x 384", f"{kb:.1f} KB", table)
        return kb

    def _cached(self, beginning: str, ending: str, name: str) -> float:
        table = self._figures.table(beginning, ending)
        cpu_ms = parts(table.cell(DAGUERRE, _CPU))["api"]
        self._note(f"API, CPU for a rendition {name}", f"{cpu_ms:.2f} ms", table)
        return cpu_ms

    def from_memory(self) -> float:
        return self._cached("Cached, ", "one process", "from memory")

    def from_disk(self) -> float:
        return self._cached("Cached on disk, ", "one process", "from the local disk")

    def read_api(self) -> float:
        table = self._figures.table("Metadata of one of 200")
        cpu_ms = parts(table.cell(DAGUERRE, _CPU))["api"]
        self._note("API, CPU for metadata", f"{cpu_ms:.2f} ms", table)
        return cpu_ms

    def read_postgres(self) -> float:
        table = self._figures.table("Metadata of one of 200")
        cpu_ms = parts(table.cell(DAGUERRE, _CPU)).get("postgres", 0.0)
        self._note("PostgreSQL, CPU for metadata", f"{cpu_ms:.2f} ms", table)
        return cpu_ms

    def jobs_per_s(self) -> float:
        table = self._figures.table("Workers")
        rate = table.value("1", "jobs/s, median (min to max)")
        self._note("Jobs of one worker without decoding", f"{rate:,.0f} a second", table)
        return rate

    def _writes(self, rows: str, name: str) -> BatchCost:
        table = self._figures.table("Footprint, writes")
        cost = BatchCost(
            _write(table, rows, "1", "PostgreSQL CPU ms per row"),
            _write(table, rows, "16", "PostgreSQL CPU ms per row"),
            16,
        )
        text = f"{cost.alone:.2f}, {cost.in_batch:.2f} ms"
        self._note(f"PostgreSQL, CPU for {name}, alone and in a batch of 16", text, table)
        return cost

    def image_rows(self) -> BatchCost:
        return self._writes("image", "the rows of an upload (4 statements)")

    def rendition_rows(self) -> BatchCost:
        return self._writes("rendition", "the row of a rendition")

    def _wal(self, rows: str, column: str, name: str) -> float:
        table = self._figures.table("Footprint, writes")
        num_bytes = _write(table, rows, "16", column)
        self._note(name, f"{num_bytes:,.0f} bytes", table)
        return num_bytes

    def image_wal(self) -> float:
        return self._wal("image", "WAL bytes per row", "WAL of an upload, without images of whole pages")

    def image_wal_first(self) -> float:
        return self._wal("image", "WAL bytes per row after a checkpoint", "WAL of an upload, right after a checkpoint")

    def rendition_wal_first(self) -> float:
        return self._wal(
            "rendition", "WAL bytes per row after a checkpoint", "WAL of a rendition, right after a checkpoint"
        )

    def queue(self) -> BatchCost:
        table = self._figures.table("Footprint, queue")
        cost = BatchCost(table.value("1", "all"), table.value("16", "all"), 16)
        self._note(
            "Redis, CPU for a job (enqueue, claim, finish), alone and in a script of 16",
            f"{cost.alone:.3f}, {cost.in_batch:.3f} ms",
            table,
        )
        return cost

    def job_bytes(self) -> float:
        table = self._figures.table("Footprint, queue")
        num_bytes = table.line("Memory of a waiting job in Valkey, bytes")
        self._note("Memory of a waiting job in Redis", f"{num_bytes:,.0f} bytes", table)
        return num_bytes

    def row_bytes(self) -> dict[str, float]:
        table = self._figures.table("Footprint, rows")
        by_relation = {row[0]: first_number(row[2]) for row in table.rows}
        for rows, name in _RELATIONS.items():
            total = sum(first_number(row[2]) for row in table.rows if row[1] == rows)
            of_indexes = total - by_relation[rows] if rows in by_relation else total
            self._note(f"Disk for {name}, of which indexes", f"{total:,.0f}, {of_indexes:,.0f} bytes", table)
        return by_relation

    def refresh_ns(self) -> float:
        table = self._figures.table("Growth, refresh of the counters")
        images = max(first_number(row[0]) for row in table.rows)
        ns = table.value(f"{images:,.0f} images", table.columns[1]) * 1e6 / images
        self._note("Refresh of the counters", f"{ns:.0f} ns an image", table)
        return ns

    def sum_ns(self) -> float:
        table = self._figures.table("Footprint, statements")
        ns = table.value("sum of the sizes of renditions", "ns per row")
        self._note("Sum of the sizes of renditions, for eviction", f"{ns:.0f} ns a row", table)
        return ns

    def api_mb(self) -> float:
        table = self._figures.table("Memory under 64 concurrent uploads, on S3")
        mb = table.line("Peak of the API process, MB")
        self._note("Peak of an API process, 64 uploads of 5 MB", f"{mb:.0f} MB", table)
        return mb

    def _peak(self, part: str, name: str) -> float:
        table = self._uploads("l")
        mb = parts(table.cell(DAGUERRE, _PEAK))[part]
        self._note(f"Peak of {name}, uploads of l", f"{mb:.0f} MB", table)
        return mb

    def worker_mb(self) -> float:
        return self._peak("worker", "a worker")

    def decoder_mb(self) -> float:
        return self._peak("libvips", "a decoder")

    def connection_mb(self) -> float:
        table = self._figures.table("Footprint, writes")
        mb = table.line("Private memory of a connection, median, MB")
        self._note("Memory of a connection in PostgreSQL", f"{mb:.1f} MB", table)
        return mb


def _write(table: Table, rows: str, batch_size: str, column: str) -> float:
    [row] = [row for row in table.rows if row[:2] == [rows, batch_size]]
    return first_number(row[table.columns.index(column)])


def _list_ms(by_size: dict[str, float]) -> str:
    return ", ".join(f"{value:.2f}" for value in by_size.values()) + " ms"
