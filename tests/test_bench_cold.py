"""Rows whose weights come from memory: copies in turn, no peer beside them, and a ceiling of that memory."""

import torch

from deepseek_fast.bench import ceiling, cold, rooms, row


def test_copies_take_turns() -> None:
    packed = torch.zeros(cold.COLD_BYTES // 2 - 64, dtype=torch.uint8)
    call = cold.in_turn(lambda packed: packed.data_ptr(), packed, cold=True)
    first = [call() for _ in range(3)]
    assert len(set(first)) == 3 and packed.data_ptr() not in first
    assert [call() for _ in range(3)] == first
    assert cold.in_turn(lambda packed: packed.data_ptr(), packed, cold=False)() == packed.data_ptr()


def test_a_cold_row_has_no_peer_and_the_ceiling_of_its_copies(monkeypatch) -> None:
    cases = [rooms.part(room, "cases").BENCH for room in ("int8_matmul", "int4_matmul", "fp8_matmul")]
    found = [case for bench in cases for case in bench if row.is_cold(case)]
    assert len(found) == len(cases) and all(case.id.endswith("-cold") and not case.quick for case in found)
    monkeypatch.setattr(row, "ROW_SECONDS", 0.01)
    sizes = []

    class Roofline(ceiling.Roofline):
        def _probe(self, key, found):
            sizes.append(key[1])
            return super()._probe(key, found)

    one = rooms.Row("int8_matmul", found[0], rooms.rows(["int8_matmul"], quick=True)[0].isa, 1, True)
    data = row.measure(one, ("torch_eager",), Roofline())
    assert data["peers"] == {} and cold.COLD_BYTES in sizes and data["error_over_bound"] <= 1
