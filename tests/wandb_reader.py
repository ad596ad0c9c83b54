"""Read the binary log of an offline W&B run (a format W&B does not document; written against wandb 0.31)."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HEADER = 7
_BLOCK = 32768
_WHOLE, _LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """The protobuf records of a .wandb file, up to where a killed process stopped writing."""
    from wandb.proto import wandb_internal_pb2

    content, place, gathered = Path(path).read_bytes(), _HEADER, b""
    assert content[:4] == b":W&B"
    while place + _HEADER <= len(content):
        room = _BLOCK - place % _BLOCK
        if room < _HEADER:
            place += room
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + _HEADER])
        data = content[place + _HEADER : place + _HEADER + size]
        if kind == 0 or len(data) < size:
            return
        place += _HEADER + size
        gathered += data
        if kind in (_WHOLE, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(gathered)
            gathered = b""
            yield record


def read_run(directory: Path) -> dict[str, Any]:
    """All that the offline runs below `directory` hold: id, config, history rows, summary, exit code."""
    found: dict[str, Any] = {"rows": [], "summary": {}, "config": {}, "exit": None, "preempting": False}
    for path in sorted(Path(directory).rglob("*.wandb")):
        for record in records(path):
            match record.WhichOneof("record_type"):
                case "run":
                    run = record.run
                    found |= {
                        "id": run.run_id,
                        "group": run.run_group,
                        "job_type": run.job_type,
                        "tags": list(run.tags),
                    }
                    found |= {"project": run.project, "name": run.display_name}
                    found["config"] |= {item.key: json.loads(item.value_json) for item in run.config.update}
                case "history":
                    found["rows"].append(
                        {_key(item): json.loads(item.value_json) for item in record.history.item}
                    )
                case "summary":
                    found["summary"] |= {
                        _key(item): json.loads(item.value_json) for item in record.summary.update
                    }
                case "exit":
                    found["exit"] = record.exit.exit_code
                case "preempting":
                    found["preempting"] = True
    return found


def _key(item: Any) -> str:
    return item.key or "/".join(item.nested_key)
