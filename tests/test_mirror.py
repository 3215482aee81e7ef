"""Results on an object store: a union that loses nothing, whatever fails in between; no lock, no append."""

from __future__ import annotations

import json
import logging
import uuid
from pathlib import Path
from typing import Any

import pytest
import tiny_sweep
from fake_cells import record

from adapters.errors import UserError
from bench import manifest, outbox, spec, sweep
from bench.mirror import Mirror
from bench.outbox import NoRoomError, Outbox
from bench.records import Record, RecordStore
from bench.remote import Remote, RemoteError, is_remote, work_folder
from bench.report.__main__ import main as report

PICTURE = "data:image/png;base64,aGVsbG8="


@pytest.fixture(params=["memory", "file"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name = f"there-{uuid.uuid4().hex}"
    return f"memory://{name}/tiny" if request.param == "memory" else f"file://{tmp_path / name}/tiny"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.0)


def machine(folder: Path, address: str) -> tuple[RecordStore, Mirror]:
    store, mirror = RecordStore(folder), Mirror(Remote(address), folder)
    store.mirror = mirror
    return store, mirror


def put(store: RecordStore, *records: Record) -> None:
    box = Outbox(store)
    for one in records:
        box.put(one)
    box.close()


def ids(store: RecordStore) -> set[str]:
    return {one.id for one in store.read()}


def test_two_machines_add_to_one_address_and_each_gets_the_union(tmp_path: Path, address: str) -> None:
    (one, here), (other, there) = machine(tmp_path / "a", address), machine(tmp_path / "b", address)
    assert here.pull(one) == there.pull(other) == 0
    put(one, record("none"), record("ibau").model_copy(update={"details": {"mask": PICTURE}}))
    put(other, record("none", seed=1))
    here.push()
    there.push()  # its records.jsonl lacks what the first one sent: the objects have it
    assert (here.pull(one), there.pull(other)) == (1, 2)
    assert ids(one) == ids(other)
    assert len(ids(one)) == 3
    mask = next(found.details["mask"] for found in other.read() if found.details)
    assert (other.folder / mask).read_bytes() == b"hello"
    assert (here.pull(one), there.pull(other), here.catch_up(one)) == (0, 0, 0)
    assert len(one.path.read_bytes().splitlines()) == 3


def test_a_record_sends_the_pictures_that_it_names_and_no_others(tmp_path: Path, address: str) -> None:
    store, mirror = machine(tmp_path / "a", address)
    stray = tmp_path / "a" / "pictures" / f"{'0' * 16}.png"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"of another record")
    told = {"masks": [{"found": PICTURE}, "pictures/../secret.png", f"pictures/{'1' * 16}.png"]}
    put(store, record("ibau").model_copy(update={"details": told}))
    (kept,) = (one.details["masks"][0]["found"] for one in store.read())
    assert mirror.remote.names("pictures") == {kept.removeprefix("pictures/")}


def test_a_record_that_did_not_fail_counts(tmp_path: Path, address: str) -> None:
    (one, here), (other, there) = machine(tmp_path / "a", address), machine(tmp_path / "b", address)
    put(one, record("none", status="failed"))
    there.pull(other)
    put(other, record("none"))
    assert here.pull(one) == 1
    assert [found.status for found in one.read()] == ["ok"]


def test_what_is_no_record_is_skipped_and_told_of(
    tmp_path: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    remote = Remote(address)
    names = [record("none").id, "0" * 16, record("ibau").id]
    contents = (record("none").line(), b"{cut", record("ibau").line())
    for name, content in zip(names, contents, strict=True):
        remote.write(f"records/{name}.json", content)
    remote.write("records/notes.txt", b"hello")
    remote.write("pictures/evil name.png", b"x")
    store, mirror = machine(tmp_path / "a", address)
    with caplog.at_level(logging.WARNING):
        assert mirror.pull(store) == 2
    assert caplog.text.count("no record of this version is skipped") == 1
    assert not (tmp_path / "a" / "pictures").exists()


def test_parts_of_both_manifests_stay(tmp_path: Path, address: str) -> None:
    parts = [manifest.Manifest(name="tiny", parts=(manifest.Part(name=name, cells=(name * 4,)),)) for name in "ab"]
    for part, name in zip(parts, "ab", strict=True):
        manifest.merge(part, tmp_path / name)
    machine(tmp_path / "a", address)[1].push_manifest()
    store, mirror = machine(tmp_path / "b", address)
    mirror.pull(store)
    found = manifest.read(tmp_path / "b")
    assert found is not None
    assert {part.name: part.cells for part in found.parts} == {"a": ("aaaa",), "b": ("bbbb",)}


class Flaky(Remote):
    """Cannot be reached at times."""

    down = False

    def __init__(self, address: str) -> None:
        super().__init__(address)
        real, self._files = self._files, self

        def call(name: str) -> Any:
            def run(*given: Any, **more: Any) -> Any:
                if self.down:
                    raise RuntimeError("Could not connect to the endpoint\nURL")
                return getattr(real, name)(*given, **more)

            return run

        for name in ("find", "cat", "cat_file", "pipe_file", "makedirs", "invalidate_cache"):
            setattr(self, name, call(name))


def test_an_unreachable_remote_pauses_and_loses_nothing(
    tmp_path: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    remote, store = Flaky(address), RecordStore(tmp_path / "a")
    store.mirror = Mirror(remote, store.folder)
    box = Outbox(store)
    remote.down = True
    with caplog.at_level(logging.WARNING):
        for seed in range(3):
            box.put(record("none", seed=seed))
            assert len(store.read()) == seed + 1, "on disk at once"
        assert box.blocked
        box.flush()
        told = f"{address} cannot be written to (RuntimeError: Could not connect to the endpoint URL): nothing new is"
        assert caplog.text.count(told) == 1
        remote.down = False
        box.flush()
    assert caplog.text.count(f"{address} can be written to again") == 1
    assert not box.blocked
    assert remote.names("records") == {f"{one.id}.json" for one in store.read()}
    assert len(store.path.read_bytes().splitlines()) == 3


def test_one_that_stays_unreachable_ends_the_sweep_and_the_next_one_sends(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "PATIENCE_SECONDS", -1.0)
    remote, store = Flaky(address), RecordStore(tmp_path / "a")
    mirror = store.mirror = Mirror(remote, store.folder)
    box = Outbox(store)
    remote.down = True
    box.put(record("none"))
    assert box.exhausted
    with pytest.raises(NoRoomError, match=r"1 record\(s\) are in .*the same command sends them") as caught:
        box.close()
    assert address in str(caught.value)
    with pytest.raises(RemoteError, match=r"tiny: cannot be reached or written to \(RuntimeError: Could not"):
        mirror.pull(store)
    remote.down = False
    assert mirror.pull(store) == 0
    assert mirror.catch_up(store) == 1
    assert json.loads(remote.read_all(remote_names(remote))[0])["id"] == record("none").id


@pytest.mark.parametrize("pushed", [False, True])
def test_a_retried_record_that_found_no_way_takes_the_failures_place_later(
    tmp_path: Path, address: str, pushed: bool
) -> None:
    remote, store = Flaky(address), RecordStore(tmp_path / "a")
    mirror = store.mirror = Mirror(remote, store.folder)
    failed, fine = record("none", status="failed"), record("none")
    put(store, failed, record("ibau", status="failed"))
    if pushed:
        mirror.push()
    store.drop([failed.id])
    remote.down = True
    box = Outbox(store)
    box.put(fine)
    with pytest.raises(NoRoomError, match="the same command sends them"):
        box.close()
    remote.down = False
    again = Mirror(remote, store.folder)  # another call of the command
    assert again.pull(store) == 0
    assert (again.catch_up(store), again.catch_up(store)) == (1, 0)
    assert Record.model_validate_json(remote.read(f"records/{fine.id}.json") or b"").status == "ok"
    assert again.pull(store) == again.catch_up(store) == 0
    assert {one.cell.defense["name"]: one.status for one in store.read()} == {"none": "ok", "ibau": "failed"}


def remote_names(remote: Remote) -> list[str]:
    return [f"records/{name}" for name in sorted(remote.names("records"))]


def test_an_object_that_is_not_there_is_none_and_a_failure_to_write_is_not(tmp_path: Path) -> None:
    remote = Remote(f"file://{tmp_path}/x")
    assert remote.read("sweep.json") is None
    assert remote.names("records") == set()
    assert remote.read_all(["records/a.json"]) == []
    (tmp_path / "x").write_text("a file where a folder should be")
    with pytest.raises(RemoteError):
        remote.write("records/a.json", b"{}")


@pytest.mark.parametrize(
    ("place", "words"),
    [("nosuch://bucket/x", "Protocol not known: nosuch"), ("s3://bucket/x", "expected its package to be installed: ")],
)
def test_an_address_that_cannot_be_used_is_one_line(
    place: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(UserError, match=f"^--out: found '{place}'.*{words}"):
        Remote(place)


def test_the_command_line_tells_addresses_from_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert is_remote("gs://b/x")
    assert not is_remote("runs")
    found = sweep.parse(["x.yaml", "--out", "s3://bucket/runs/"])
    assert found.remote == "s3://bucket/runs"
    assert found.out == work_folder("s3://bucket/runs")
    assert found.out.parent == tmp_path / "ibau-bench" / "remote"
    assert found.cache == found.out / "cache"
    assert sweep.parse(["x.yaml", "--out", "s3://b", "--work", str(tmp_path)]).out == tmp_path
    assert sweep.parse(["x.yaml", "--out", "runs"]).remote is None
    for wrong in (["--work", "w"], ["--cache", "s3://b"], ["--data-root", "s3://b"]):
        with pytest.raises(UserError, match=f"^{wrong[0]}: found "):
            sweep.parse(["x.yaml", *wrong])


def test_the_report_reads_an_address(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    store, _ = machine(tmp_path / "a", address)
    put(store, record("none"), record("ibau"))
    assert report([address, "--format", "csv"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == work_folder(address) / "tables.csv"
    assert len((path.parent / "records.csv").read_text().splitlines()) >= 3


def test_a_sweep_whose_cells_another_machine_did_computes_nothing(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    tree = tiny_sweep.tree(grid={"defense": ["none"]})
    tree["cell"]["poison_ratio"] = 0.1
    path = tiny_sweep.write(tmp_path, tree)
    (tmp_path / "data").mkdir()
    out = address.removesuffix("/tiny")
    (cell,) = spec.load(path, (), tmp_path / "data").cells
    put(machine(tmp_path / "a", address)[0], Record(id=cell.id, cell=cell, status="ok", acc=0.9, asr=0.1, seconds=1.0))
    assert sweep.main([str(path), "--data-root", str(tmp_path / "data"), "--out", out]) == 0
    said = capsys.readouterr().out
    assert f"{address}: 1 records came from there, 0 went" in said
    assert "nothing to compute: all 1 cells" in said
    for name in ("records.jsonl", "sweep.json", "report.html", "report.md"):
        assert Remote(address).read(name) == (work_folder(out) / "tiny" / name).read_bytes()
