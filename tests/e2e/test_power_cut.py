"""A power cut, simulated: the backing file of a loop-mounted file system is copied while the server is stopped in its
tracks, and the copy is mounted. What the file system had not written to the device is lost, as it is in a real one.
"""

import os
import random
import signal
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.mounts import mount, need_mounts, unmount
from tests.e2e.orders import Client, Ledger, calling, check_sums, following, read_journal
from tests.process import PROGRAM, ServerProcess, broken, running_server, wait_until

CUTS = int(os.environ.get("TALLYWIRE_POWER_CUTS", "4"))
"""Cuts at `power`, one after the other on one journal; a thorough run takes 30."""

CUTS_OF_PROCESS = 2
IMAGE_BYTES = 64 * 2**20
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CALLERS = 3
MOST_BATCHES_OF_A_LIFE = 2000
"""Enough for rounds of housekeeping, which come after 1,000 rows or a second: cuts fall into them too."""

Prefix = Sequence[str]


class Machine:
    """A disk that keeps what was written to its device, and a boot id of its own for each boot."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._place = directory / "disk"
        self._place.mkdir()
        self._images = 0
        self._image = self._next_image()
        _make_file_system(self._image)
        self._mount()

    @property
    def journal(self) -> Path:
        """A journal on the disk."""
        return self._place / "tallywire.db"

    def boot(self) -> Prefix:
        """What a server is started with after this boot: it sees another boot id, and nobody else does."""
        boot_id = self._directory / "boot_id"
        boot_id.write_text(f"{uuid.uuid4()}\n")
        show = f'mount --bind "$0" {BOOT_ID} && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", show, str(boot_id)]

    def cut(self, server: ServerProcess) -> None:
        """The power goes and comes back: the server is dead and the disk holds what had reached the device."""
        _halt(server)
        image = self._next_image()
        _copy_device(self._image, image)
        server.process.kill()
        server.process.wait()
        self.unmount()
        self._image.unlink()
        self._image = image
        self._mount()

    def restart(self) -> None:
        """Shut the machine down in order and start it again: everything is written."""
        self.unmount()
        self._mount()

    def unmount(self) -> None:
        """Let go of the disk and its device; harmless when it is not mounted."""
        unmount(str(self._place))

    def scrap(self) -> None:
        """Leave nothing behind."""
        self.unmount()
        self._image.unlink(missing_ok=True)

    def _next_image(self) -> Path:
        self._images += 1
        return self._directory / f"image-{self._images}"

    def _mount(self) -> None:
        # The file system shall write nothing by itself while a server lives.
        mount("-o", "loop,commit=300", str(self._image), str(self._place))


def _make_file_system(image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    # Nothing is left for the kernel to initialise later, behind the back of a copy.
    lazy = "lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", lazy, image], check=True)


def _halt(server: ServerProcess) -> None:
    """Stop every thread; one that is in a system call ends it first."""
    server.process.send_signal(signal.SIGSTOP)
    tasks = Path(f"/proc/{server.process.pid}/task")
    wait_until(
        lambda: all(_state(task) == "T" for task in tasks.iterdir()), "every thread of the server has been stopped"
    )


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def _copy_device(image: Path, copy: Path) -> None:
    """As of one moment: again, if the kernel wrote something back meanwhile."""
    while True:
        written = image.stat().st_mtime_ns
        subprocess.run(["cp", "--sparse=always", image, copy], check=True)
        if image.stat().st_mtime_ns == written:
            return


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    need_mounts(tmp_path, "mkfs.ext4", "losetup", "unshare")
    if subprocess.run(["losetup", "--find"], capture_output=True, check=False).returncode:
        pytest.skip("the kernel has no loop device to give")
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("the kernel lets root make no mount namespace here, so no boot id can be shown to one server only")
    machine = Machine(tmp_path)
    try:
        yield machine
    finally:
        machine.scrap()


class World:
    """Callers and clients on whatever server there is at the moment."""

    def __init__(self, journal: Path, durability: str, program: Sequence[str] = PROGRAM) -> None:
        self.ledger = Ledger()
        self.clients = [Client(1, 1, 2), Client(1, 2), Client(2, 1)]
        self._arguments = [f"--journal={journal}", f"--durability={durability}"]
        self._program = program
        self._dice = random.Random(20251030)

    def start(self, stack: ExitStack, prefix: Prefix = ()) -> ServerProcess:
        """A server on the journal."""
        return stack.enter_context(running_server(*self._arguments, command_prefix=prefix, program=self._program))

    def live_until_the_cut(self, server: ServerProcess, machine: Machine, *, batches: int) -> None:
        """Everyone is busy until so many batches more have been acknowledged; then the power goes."""
        enough = len(self.ledger.acknowledged) + batches
        seeds = [self._dice.getrandbits(32) for _ in range(CALLERS)]
        with (
            following(server, self.clients, server.process.kill),
            calling(server, self.ledger, seeds) as callers,
        ):
            wait_until(
                lambda: len(self.ledger.acknowledged) >= enough or any(caller.ended.is_set() for caller in callers),
                f"{batches} batches",
            )
            machine.cut(server)

    def some(self) -> int:
        """Batches until the next cut."""
        return int(MOST_BATCHES_OF_A_LIFE ** self._dice.random())

    def check_nothing_was_lost(self, server: ServerProcess, epoch: str) -> None:
        """All that was acknowledged or shown is there, under the same positions; what is in doubt is sent again."""
        assert epoch_of(server) == epoch
        recorded = self.ledger.check(server)
        for client in self.clients:
            client.check(recorded)
        self.ledger.retry(server)
        self.ledger.check(server)

    def check_everyone_resumes(self, server: ServerProcess) -> None:
        """Nobody is reset, and all sums are exact."""
        with following(server, self.clients, server.process.kill):
            for client in self.clients:
                client.catch_up(server)
                assert client.reset is None


def epoch_of(server: ServerProcess) -> str:
    """The epoch that the server named when it was ready."""
    (ready,) = [line for line in server.log_lines() if line["message"] == "Ready"]
    return str(ready["epoch"])


def test_power_cuts_lose_no_acknowledged_batch_at_power(machine: Machine) -> None:
    world = World(machine.journal, "power")
    _cut_and_check(world, machine, [world.some() for _ in range(CUTS)])


@pytest.mark.parametrize("synchronous", ["OFF", "NORMAL"])
def test_the_cuts_are_real_a_build_that_does_not_sync_loses_what_it_acknowledged(
    machine: Machine, synchronous: str
) -> None:
    forgetful = broken(f"import core.journal.sqlite.opening as o\no._SYNCHRONOUS['power'] = {synchronous!r}")
    world = World(machine.journal, "power", forgetful)
    with pytest.raises(AssertionError, match="acknowledged batches are missing"):
        # One may fall right behind a sync that housekeeping made; not all of them do.
        _cut_and_check(world, machine, [20] * 5)


def test_a_power_cut_at_process_is_told_to_every_client(machine: Machine) -> None:
    world = World(machine.journal, "process")
    for _ in range(CUTS_OF_PROCESS):
        _cut_and_check_that_it_is_told(world, machine)


def test_a_build_that_keeps_its_epoch_over_a_power_cut_at_process_is_seen(machine: Machine) -> None:
    forgetful = broken("import core.journal.sqlite.opening as o\no.boot_id = lambda: 'always the same'")
    with pytest.raises(AssertionError, match="another epoch"):
        _cut_and_check_that_it_is_told(World(machine.journal, "process", forgetful), machine)


def test_a_killed_server_at_process_loses_nothing(tmp_path: Path) -> None:
    world = World(tmp_path / "tallywire.db", "process")
    with ExitStack() as stack:
        server = world.start(stack)
        epoch = epoch_of(server)
        with following(server, world.clients, server.process.kill), calling(server, world.ledger, [1, 2, 3]):
            wait_until(lambda: len(world.ledger.acknowledged) > 200, "200 batches")
            server.stop(signal.SIGKILL)
        server = world.start(stack)
        world.check_nothing_was_lost(server, epoch)
        world.check_everyone_resumes(server)


def test_a_machine_that_is_shut_down_in_order_at_process_keeps_its_epoch(machine: Machine) -> None:
    world = World(machine.journal, "process")
    with ExitStack() as stack:
        server = world.start(stack, machine.boot())
        epoch = epoch_of(server)
        with following(server, world.clients, server.process.kill):
            with calling(server, world.ledger, [1, 2, 3]):
                wait_until(lambda: len(world.ledger.acknowledged) > 200, "200 batches")
            assert server.stop() == 0
        machine.restart()
        server = world.start(stack, machine.boot())
        world.check_nothing_was_lost(server, epoch)
        world.check_everyone_resumes(server)


def _cut_and_check(world: World, machine: Machine, lives: Sequence[int]) -> None:
    """A life of so many batches before each cut; the next life first has to show that nothing was lost."""
    epoch = ""
    for batches in (*lives, 0):
        with ExitStack() as stack:
            server = world.start(stack, machine.boot())
            epoch = epoch or epoch_of(server)
            world.check_nothing_was_lost(server, epoch)
            if batches:
                world.live_until_the_cut(server, machine, batches=batches)
            else:
                world.check_everyone_resumes(server)


def _cut_and_check_that_it_is_told(world: World, machine: Machine) -> None:
    # What was acknowledged in an earlier epoch has been told to be over.
    world.ledger.forget()
    with ExitStack() as stack:
        server = world.start(stack, machine.boot())
        before = epoch_of(server)
        world.live_until_the_cut(server, machine, batches=world.some())
    with ExitStack() as stack:
        server = world.start(stack, machine.boot())
        assert epoch_of(server) != before, "another epoch, since batches may have been lost"
        with following(server, world.clients, server.process.kill):
            for client in world.clients:
                assert client.reset is not None, "nothing is lost silently"
                assert client.reset["reason"] == "epoch"
                client.catch_up(server)
            world.ledger.retry(server)
            recorded = read_journal(server)
            check_sums(server, recorded)
            for client in world.clients:
                client.catch_up(server)
                client.check(recorded)
