"""Every room x bench case x instruction set level x threads with pytest-benchmark: `pytest -c bench/pytest.ini bench`.

The measuring itself is deepseek_fast.bench.row, which `deepseek-fast bench` uses too; here a row is a test that can be
chosen with -k and compared by pytest-benchmark's own means, and its data lands in `--benchmark-json` as well.
"""

from typing import Any

import pytest

from deepseek_fast.bench import ceiling, report, rooms
from deepseek_fast.bench import row as rows_
from deepseek_fast.bench import run as runs


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = rooms.rows(rooms.names(), quick=metafunc.config.getoption("quick"))
    metafunc.parametrize("row", chosen, ids=[row.id for row in chosen])


def bench_row(
    row: rooms.Row, benchmark: Any, bench_run: runs.Keeper, roofline: ceiling.Roofline, peer_names: tuple[str, ...]
) -> None:
    benchmark.group = f"{row.room} {row.case.id}"
    with rows_.settings(row):
        measurement = rows_.Measurement(row, peer_names)
        benchmark.pedantic(
            measurement.round, setup=measurement.before_round, rounds=measurement.rounds, iterations=1, warmup_rounds=1
        )
        data = measurement.finish(benchmark.stats.stats.data, roofline)
    benchmark.extra_info.update(data)
    bench_run.add(data)
    assert report.right(data), f"error {data['error_over_bound']} times the bound"
