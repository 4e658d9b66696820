"""Running a function over items: here, and in workers on Ray that are killed, stopped and fail."""

import functools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import vidup
from vidup.config import Runtime, Settings
from vidup.engines import Choice
from vidup.errors import ConfigError, EngineError, MediaError, Stopped
from vidup.job import crew, on_ray, ray_cluster
from vidup.job.crew import Report, Worker
from vidup.upscaler import Upscaler

UNITS = 5
"""What each item reports, one by one."""


def one_by_one(work: Callable[[Any, Report], Any]) -> Worker[Any, Any]:
    """A worker that is done with an item before it takes the next."""

    def worker(items: Iterator[Any], report: Report) -> Generator[tuple[Any, Any], None, None]:
        for item in items:
            yield item, work(item, report)

    return worker


def execute(
    make: Callable[[], Worker[Any, Any]],
    items: Iterable[Any],
    *,
    on_result: Callable[[Any, Any], None],
    on_progress: Callable[[int], None] = lambda units: None,
    stop: Callable[[], bool] = lambda: False,
    workers: int = 1,
    address: str | None = None,
    threads: int = 0,
) -> None:
    """Run `make` here, or by workers on Ray where several are wanted, or a cluster."""
    if workers == 1 and address is None:
        running = crew.Here(Upscaler()).run(lambda upscaler: make(), items, on_progress, stop)
    else:
        setting = f"workers = {workers}" if address is None else f"ray = {address!r}"
        wanted = ray_cluster.Wanted(setting, workers, address, threads)
        running = on_ray.run(make, items, wanted, on_progress, stop)
    with closing(running) as results:
        for item, result in results:
            on_result(item, result)


def square(pause: float = 0.0) -> Worker[int, int]:
    def work(item: int, report: Report) -> int:
        for _ in range(UNITS):
            time.sleep(pause)
            report(1)
        return item * item

    return one_by_one(work)


def failing() -> Worker[int, int]:
    def work(item: int, report: Report) -> int:
        if item == 2:
            raise MediaError("frame 7 cannot be decoded")
        time.sleep(0.05)
        return item

    return one_by_one(work)


def unmakeable() -> Worker[int, int]:
    raise EngineError("there is no such model")


def whereabouts(
    folder: Path, pause: float, together: int = 1, talks: bool = False
) -> Worker[int, tuple[int, int, str | None]]:
    """A worker that leaves its process id and the number of its factory's calls, and waits until so many are made."""
    (folder / f"made-{os.getpid()}").touch(exist_ok=False)

    def work(item: int, report: Report) -> tuple[int, int, str | None]:
        end = time.monotonic() + 60
        while len(list(folder.glob("made-*"))) < together and time.monotonic() < end:
            time.sleep(0.02)
        (folder / f"item-{item}").write_text(str(os.getpid()))
        if talks:
            logging.getLogger("vidup.engines").warning("item %d: the batch is halved", item)
            logging.getLogger("vidup.engines").debug("not asked for")
        for _ in range(UNITS):
            time.sleep(pause)
            report(1)
        return item, os.getpid(), os.environ.get("OMP_NUM_THREADS")

    return one_by_one(work)


def suicidal(folder: Path) -> Worker[int, int]:
    """A worker that dies of each item, as soon as the driver has seen what it reported (and left a file)."""

    def work(item: int, report: Report) -> int:
        report(3)
        end = time.monotonic() + 60
        while not (folder / "seen").exists() and time.monotonic() < end:
            time.sleep(0.02)
        (folder / "seen").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
        return item

    return one_by_one(work)


def test_a_worker_may_be_looked_at_from_two_threads(monkeypatch: pytest.MonkeyPatch):
    """As it is when it ends an item while the driver asks: neither may wait for what the other one took."""
    logger = logging.getLogger("vidup")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", False)
    member, told, both = on_ray._Member(logging.WARNING), [], threading.Barrier(2)

    def look() -> None:
        both.wait(30)
        told.extend(member.look()[2])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            for index in range(3000):
                logger.warning("%d", index)
            looks = [threading.Thread(target=look, daemon=True) for _ in range(2)]
            for each in looks:
                each.start()
            for each in looks:
                each.join(30)
                assert not each.is_alive()
    finally:
        sys.setswitchinterval(interval)
    assert sorted(int(record.message) for record in told) == sorted(list(range(3000)) * 10)


class Collected:
    """What came back: results by item, and every step of the progress."""

    def __init__(self) -> None:
        self.results: dict[Any, Any] = {}
        self.steps: list[int] = []

    def __call__(self, make: Any, items: Any, **options: Any) -> "Collected":
        execute(make, items, on_result=self.results.__setitem__, on_progress=self.steps.append, **options)
        return self


def workers_alive() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "_Member" in process.name() or "_Member" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def gone(processes: list[psutil.Process], seconds: float = 10.0) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]


@contextmanager
def port(banner: bytes | None = None) -> Iterator[str]:
    """The address of a server that says something and no more; with None it says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(banner or b"")
                    while connection.recv(1000):
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


class TestHere:
    def test_results_and_progress_in_order(self):
        got = Collected()(square, range(4))
        assert list(got.results.items()) == [(0, 0), (1, 1), (2, 4), (3, 9)]
        assert got.steps == [1] * 4 * UNITS

    def test_the_worker_is_made_once_and_only_for_an_item(self):
        made = []

        def make() -> Worker[int, int]:
            made.append(1)
            return square()

        Collected()(make, [])
        assert not made
        Collected()(make, range(3))
        assert len(made) == 1

    @pytest.mark.parametrize("error", [MediaError("damaged"), KeyboardInterrupt(), ZeroDivisionError()])
    def test_errors_pass_as_they_are(self, error: BaseException):
        def make() -> Worker[int, int]:
            def work(item: int, report: Report) -> int:
                if item == 1:
                    raise error
                return item

            return one_by_one(work)

        got = Collected()
        with pytest.raises(type(error)) as caught:
            got(make, range(3))
        assert caught.value is error
        assert got.results == {0: 0}

    def test_stop_in_the_middle_of_an_item(self):
        stop, results, steps = threading.Event(), [], []

        def progress(units: int) -> None:
            steps.append(units)
            if len(steps) == UNITS + 2:
                stop.set()

        with pytest.raises(Stopped):
            execute(
                square,
                range(3),
                on_result=lambda item, result: results.append(item),
                on_progress=progress,
                stop=stop.is_set,
            )
        assert results == [0]
        assert len(steps) == UNITS + 2

    def test_stop_before_the_first_item(self):
        stop = threading.Event()
        stop.set()
        with pytest.raises(Stopped):
            Collected()(unmakeable, [1], stop=stop.is_set)

    def test_without_ray_it_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(ConfigError, match=r'^workers = 2: needs ray: pip install "vidup\[ray\]"$'):
            Collected()(square, range(2), workers=2)
        with pytest.raises(ConfigError, match=r"^ray = 'auto': needs ray"):
            Collected()(square, range(2), address="auto")
        assert Collected()(square, range(2), workers=1).results == {0: 0, 1: 1}

    def test_nothing_to_do_needs_no_ray(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        assert Collected()(square, [], workers=2).results == {}


class TestChoosing:
    """Who works is chosen once, and so is how much is done at once, without a model where its configuration tells."""

    @pytest.mark.parametrize(
        ("runtime", "kind"),
        [
            (Runtime(device="cpu"), crew.Here),
            (Runtime(device="cpu", workers=2), crew.OnRay),
            (Runtime(device="cpu", ray="auto"), crew.OnRay),
        ],
    )
    def test_by_the_runtime_alone(self, runtime: Runtime, kind: type):
        assert type(crew.choose(Upscaler(Settings(model="nearest"), runtime))) is kind

    @pytest.mark.parametrize("model", ["nearest", "mini"])
    def test_workers_do_as_much_at_once_as_one_would(self, model: str):
        settings = Settings.preset("mini") if model == "mini" else Settings(model=model)
        runtime = Runtime(device="cpu", max_memory="4G", workers=2)
        one = crew.Here(Upscaler(settings, Runtime(device="cpu", max_memory="2G")))
        workers = crew.OnRay(settings, runtime)
        for size in ((48, 64), (1080, 1920)):
            assert workers.planner is not None and workers.planner.choose(*size) == one.upscaler.choose(*size)
        assert workers.planner.limit == one.planner.limit == 2 * 2**30

    def test_where_only_the_loaded_model_tells_the_workers_choose(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(Upscaler, "engine", property(lambda self: pytest.fail("a model was loaded")))
        for settings, runtime in (
            (Settings(model="x2"), Runtime(device="cpu", workers=2)),
            (Settings(model="nearest"), Runtime(device="cpu", ray="auto")),  # its machines' memory is not known here
            (Settings(model="x4", vae="someone/else"), Runtime(device="cpu", workers=2)),
        ):
            assert crew.OnRay(settings, runtime).planner is None

    def test_the_choice_is_stored_before_the_first_segment(
        self, make_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ):
        given = []

        def run(make: Any, items: Iterable[Any], wanted: ray_cluster.Wanted, *calls: Any) -> None:
            given.append(next(iter(items)).choice)
            raise Stopped

        monkeypatch.setattr(on_ray, "run", run)
        source = make_clip()
        runtime = Runtime(device="cpu", workers=2, keep_work=True)
        with pytest.raises(Stopped):
            vidup.upscale(source, source.with_name("out.mp4"), Settings(model="nearest", scale=2), runtime=runtime)
        assert given == [Choice(4, 0)]


@pytest.fixture(scope="class")
def ray() -> Iterator[None]:
    """Ray with two cores, started once for the tests that only use it."""
    module = pytest.importorskip("ray")
    with ray_cluster.cluster(ray_cluster.Wanted("workers = 2", 2, None, 1)):
        yield
    assert not module.is_initialized()


@pytest.mark.usefixtures("ray")
class TestOnRay:
    def test_results_progress_and_what_workers_log(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        """By as many workers as there is room for; each is made once, and whoever is free takes the next item."""
        results: dict[int, tuple[int, int, str | None]] = {}
        steps: list[int] = []
        before_the_first = []

        def keep(item: int, result: tuple[int, int, str | None]) -> None:
            before_the_first.append(len(steps))
            results[item] = result

        make = functools.partial(whereabouts, tmp_path, 0.3, 2, True)
        with caplog.at_level(logging.INFO, "vidup"):
            execute(make, range(4), workers=4, threads=1, on_result=keep, on_progress=steps.append)
        assert gone(workers_alive())
        assert {item: result[0] for item, result in results.items()} == {item: item for item in range(4)}
        assert sum(steps) == 4 * UNITS and min(steps) > 0
        assert before_the_first[0] >= 4  # progress is told while an item is in hand
        processes = {pid for _, pid, _ in results.values()}
        assert processes == {int(path.name.removeprefix("made-")) for path in tmp_path.glob("made-*")}
        assert len(processes) == 2 and os.getpid() not in processes
        assert {threads for *_, threads in results.values()} == {"1"}
        told = sorted((record.name, record.message) for record in caplog.records)
        assert told[:4] == [("vidup.engines", f"item {item}: the batch is halved") for item in range(4)]
        assert [message.partition("; ")[0] for _, message in told[4:]] == [
            "workers = 4: ray has room for 2 of 4 workers of 1 CPU cores"
        ]

    def test_an_error_is_raised_with_its_type_and_ends_all(self):
        got = Collected()
        with pytest.raises(MediaError) as caught:
            got(failing, range(500), workers=2)
        assert str(caught.value) == "frame 7 cannot be decoded"
        assert len(got.results) < 100
        assert any("in work" in note for note in caught.value.__notes__)
        assert gone(workers_alive())

    def test_an_error_of_the_factory(self):
        with pytest.raises(EngineError, match=r"^there is no such model\n"):  # and a note: where
            Collected()(unmakeable, [1], workers=2)

    def test_an_error_of_the_caller_ends_all(self):
        def refuse(units: int) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            execute(square, [1], workers=2, on_result=lambda item, result: None, on_progress=refuse)
        assert gone(workers_alive())

    def test_a_killed_worker_s_item_is_done_again(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        results: dict[int, tuple[int, int, str | None]] = {}
        steps: list[int] = []
        killed: list[int] = []

        def progress(units: int) -> None:
            steps.append(units)
            path = tmp_path / "item-0"  # not there, or empty, while its worker begins
            if not killed and path.exists() and path.read_text():
                killed.append(int(path.read_text()))
                psutil.Process(killed[0]).kill()

        make = functools.partial(whereabouts, tmp_path, 0.15)
        execute(make, range(3), workers=2, on_result=results.__setitem__, on_progress=progress)
        assert set(results) == {0, 1, 2}
        assert killed[0] not in [pid for _, pid, _ in results.values()]
        assert sum(steps) == 3 * UNITS
        assert "0: its worker was killed or crashed; another takes its place" in caplog.text

    def test_an_item_that_always_kills_its_worker_is_given_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(on_ray, "_RETRIES", 1)
        steps: list[int] = []

        def look(units: int) -> None:
            steps.append(units)
            if units > 0:
                (tmp_path / "seen").touch()

        with pytest.raises(EngineError, match=r"^7: its worker was killed or crashed, try 2 of 2; if memory"):
            execute(
                functools.partial(suicidal, tmp_path),
                [7],
                workers=2,
                on_result=lambda item, result: pytest.fail("no result"),
                on_progress=look,
            )
        assert steps == [3, -3, 3, -3]

    def test_stop_ends_those_in_hand_and_keeps_what_is_done(self):
        stop, results = threading.Event(), []

        def keep(item: int, result: int) -> None:
            results.append(item)
            stop.set()

        with pytest.raises(Stopped):
            execute(functools.partial(square, 0.1), range(100), workers=2, on_result=keep, stop=stop.is_set)
        assert 1 <= len(results) <= 4
        assert gone(workers_alive())

    def test_a_worker_in_the_making_is_not_killed_but_let_go(self, monkeypatch: pytest.MonkeyPatch):
        """Ray would not always give its place back."""
        import ray

        class Blocker:
            def there(self) -> bool:
                return True

        blocker = ray.remote(num_cpus=1)(Blocker).remote()  # one of the two cores: the second worker waits for a place
        assert ray.get(blocker.there.remote(), timeout=60)
        kill, killed = ray.kill, []
        monkeypatch.setattr(ray, "kill", lambda actor: (killed.append(actor), kill(actor)))
        with pytest.raises(MediaError):
            Collected()(failing, range(2, 9), workers=2)
        assert len(killed) == 1
        kill(blocker)
        both = ray.remote(num_cpus=2)(Blocker).remote()
        assert ray.get(both.there.remote(), timeout=60)
        kill(both)

    def test_where_ray_is_its_address_is_taken(self):
        import ray

        ray_cluster._check_address(ray.get_runtime_context().gcs_address)

    def test_ray_that_makes_no_worker_is_told_and_given_up(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        import ray

        monkeypatch.setattr(on_ray, "PATIENCE_SECONDS", 0.2)
        monkeypatch.setattr(on_ray, "_MOST_SECONDS", 1.0)
        wanted = ray_cluster.Wanted("workers = 2", 2, None, 64)  # more cores than there are
        pool = on_ray.Pool(ray_cluster.Cluster(ray, wanted, True), square, [1], print)
        with pytest.raises(EngineError, match=r"^ray has made no worker for 1 s; take --workers 1"):
            next(pool.run(lambda: False))
        assert [record.message for record in caplog.records] == ["ray has had no place for a worker for 0 s; waiting"]

    def test_no_room_for_a_worker(self):
        with pytest.raises(ConfigError, match=r"^workers = 2: ray has no machine .* a worker of 64 CPU cores$"):
            Collected()(square, range(2), workers=2, threads=64)


WHOLE_LIFE = """
import functools, signal, sys
from pathlib import Path
import psutil
sys.path[:0] = {path!r}
from test_crew import execute, whereabouts

def told(item, result):
    print("result", item, result[2], *[each.pid for each in psutil.Process().children(recursive=True)], flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
try:
    execute(functools.partial(whereabouts, Path({folder!r}), 0.05), range(1000), workers=2, threads=3, on_result=told)
except KeyboardInterrupt:
    alive = psutil.Process().children(recursive=True)
    print("interrupted", not alive, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, flush=True)
"""


def test_ctrl_c_leaves_nothing(tmp_path: Path):
    """In a process of its own: Ray is started for the call, and is gone with it."""
    pytest.importorskip("ray")
    code = WHOLE_LIFE.format(path=[str(Path(__file__).parent), str(Path(__file__).parents[1])], folder=str(tmp_path))
    driver = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert driver.stdout is not None and driver.stderr is not None
    words = driver.stdout.readline().split()
    assert words[:1] == ["result"], driver.stderr.read()
    assert words[2] == "3"  # OMP_NUM_THREADS in a worker
    processes = [psutil.Process(int(pid)) for pid in words[3:] if psutil.pid_exists(int(pid))]
    assert len(processes) >= 4  # Ray's own, and two workers
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to all of the group
    try:
        output, errors = driver.communicate(timeout=120)
    finally:
        driver.kill()
    assert output.splitlines()[-1] == "interrupted True True", errors
    assert errors == ""
    assert driver.returncode == 0
    assert gone(processes, 0)


@pytest.mark.parametrize(
    ("banner", "message"), [(None, "timed out"), (b"SSH-2.0-OpenSSH_9.2\r\n", "what answers is not Ray")]
)
def test_an_address_where_something_else_listens_is_told(
    banner: bytes | None, message: str, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("ray")
    monkeypatch.setattr(ray_cluster, "_CONNECT_SECONDS", 0.5)
    with port(banner) as address, pytest.raises(ConfigError, match=f"^ray = '{address}': no cluster .*{message}"):
        Collected()(square, range(2), address=address)


def test_an_address_where_nobody_answers_is_told_at_once():
    pytest.importorskip("ray")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ConfigError, match=rf"^ray = '{address}': no cluster answers there"):
            Collected()(square, range(2), address=address)
        assert time.monotonic() - began < 6
