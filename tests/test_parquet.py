"""Episodes as Parquet: nothing is lost on the way there and back, and Hugging Face's datasets reads them."""

import pytest
from test_replay import command, episode
from test_store import episode as branched

from dreamgym.core.errors import DataError
from dreamgym.core.files import write_episodes
from dreamgym.replay.buffer import ReplayBuffer

pa = pytest.importorskip("pyarrow", reason="needs the extra [parquet]")
from dreamgym.replay.parquet import read_parquet, write_parquet  # noqa: E402


def test_episodes_come_back_whole(tmp_path):
    episodes = [episode(i, "dream" if i % 2 else "real", i) for i in range(150)] + [branched(900)]
    surprised = episodes[0].transitions[0].model_copy(update={"surprise": 1.5, "reasoning": 'it\'s a "quote"\n'})
    episodes[0] = episodes[0].model_copy(update={"transitions": (surprised, *episodes[0].transitions[1:])})
    empty = episodes[1].model_copy(update={"id": "empty", "transitions": ()})
    assert write_parquet(tmp_path / "a.parquet", [*episodes, empty]) == len(episodes)
    assert list(read_parquet(tmp_path / "a.parquet")) == episodes
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


def test_hugging_face_datasets_loads_them(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra [sft]")
    episodes = [episode(i) for i in range(5)]
    write_parquet(tmp_path / "a.parquet", episodes)
    found = datasets.load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(found) == sum(len(e.steps) for e in episodes)
    t = episodes[0].transitions[0]
    row = {name: found[0][name] for name in ("episode_id", "task_id", "action", "reward", "at")}
    assert row == {"episode_id": "e0", "task_id": "t/0", "action": t.action, "reward": t.reward, "at": None}
    assert found[0]["state"] == list(t.state)


def test_a_buffer_goes_out_and_in_as_parquet(tmp_path):
    write_episodes(tmp_path / "in.jsonl", [episode(i) for i in range(8)])
    assert command("import", tmp_path / "one", tmp_path / "in.jsonl")[0] == 0
    assert "8 episodes written" in command("export", tmp_path / "one", tmp_path / "out.parquet")[1].replace("\n", " ")
    assert "8 episodes read, 8 new" in command("import", tmp_path / "two", tmp_path / "out.parquet")[1]
    one, two = (list(ReplayBuffer(tmp_path / name, mode="ro").episodes()) for name in ("one", "two"))
    assert one == two


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file of episodes"):
        list(read_parquet(tmp_path / "none.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"not this")
    with pytest.raises(DataError, match=r"bad\.parquet: not a Parquet file of episodes"):
        list(read_parquet(tmp_path / "bad.parquet"))
    pa.parquet.write_table(pa.table({"state": [["a"]]}), tmp_path / "few.parquet")
    with pytest.raises(DataError, match=r"few\.parquet: has no column action, episode_id"):
        list(read_parquet(tmp_path / "few.parquet"))
    write_parquet(tmp_path / "a.parquet", [episode(0), episode(1)])
    table = pa.parquet.read_table(tmp_path / "a.parquet")
    at = table.schema.get_field_index("outcome")
    pa.parquet.write_table(table.set_column(at, "outcome", pa.array(["odd"] * len(table))), tmp_path / "odd.parquet")
    with pytest.raises(DataError, match=r"odd\.parquet: episode e0 \(from row 0\): field transitions\.0\.outcome"):
        list(read_parquet(tmp_path / "odd.parquet"))


def test_rows_in_another_order_are_named_and_nothing_is_lost_silently(tmp_path):
    write_parquet(tmp_path / "a.parquet", [branched(900), branched(901)])
    table = pa.parquet.read_table(tmp_path / "a.parquet")
    half = len(table) // 2
    for name, order, message in (
        ("mixed", [0, half, 1], r"mixed\.parquet: row 2: episode \S+ goes on after another; sort the rows"),
        ("reversed", [1, 0], r"reversed\.parquet: row 0: field step: 1 of episode \S+ where 0 should be"),
    ):
        pa.parquet.write_table(table.take(order), tmp_path / f"{name}.parquet")
        with pytest.raises(DataError, match=message):
            list(read_parquet(tmp_path / f"{name}.parquet"))
