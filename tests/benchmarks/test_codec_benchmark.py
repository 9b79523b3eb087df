from __future__ import annotations

import json

import torch

from zswarm.benchmarks import codec


def test_the_table_has_every_codec(capsys):
    """The benchmark prints one JSON object per codec, with errors in the order that the formats imply."""
    torch.set_num_threads(1)
    codec.main(as_json=True)
    rows = {row["codec"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(rows) == ["none", "bf16", "int8", "bnb8"]
    assert rows["none"]["relative_error"] == rows["none"]["outlier_error"] == 0
    assert rows["none"]["bytes_per_value"] == 4
    for name in ("int8", "bnb8"):
        assert rows[name]["bytes_per_value"] < 1.04
        assert rows[name]["relative_error"] < 0.02
        assert abs(rows[name]["relative_error"] - rows[name]["gradient_error"]) < 1e-3
    assert rows["bnb8"]["outlier_error"] < rows["int8"]["outlier_error"]
    assert all(row["encode_gb_per_s"] > 0 and row["decode_gb_per_s"] > 0 for row in rows.values())


def test_people_get_a_table(capsys):
    """Without --json it is a table with a row for each codec."""
    codec.main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in codec.CODECS)
