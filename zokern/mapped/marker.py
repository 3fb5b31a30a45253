"""A small file beside weights, there while they hold updates that are not on the disk yet."""

import os
from pathlib import Path

from ..errors import BadInput, writing

UPDATING, WRITTEN = "updating", "written"  # in the middle of an update; between two of them
BOOT = Path("/proc/sys/kernel/random/boot_id")


class Marker:
    """Says of weights in files that an update is under way, or that the last one is whole but maybe in the machine's memory alone.

    A process that is killed leaves what it wrote to the system, which brings it to the disk in time: between two updates nothing is
    lost. When the machine stops, some pages may be of earlier updates than others: so the marker names the boot that it was written in.
    It is on the disk before the first update is begun, and removed when the updates are.

    Args:
        weights: the file beside which it is.

    Attributes:
        state: UPDATING, WRITTEN, or None where all is on the disk.
    """

    def __init__(self, weights: Path):
        self.weights, self.path = weights, weights.with_name(f"{weights.name}.unsynced")
        self.state: str | None = None

    def read(self) -> None:
        """What an earlier process left.

        Raises:
            BadInput: the weights are not as a whole update left them.
        """
        try:
            said = self.path.read_bytes()
        except FileNotFoundError:
            return
        if not said:  # ended before it was on the disk, and so before any update
            return
        if said == _record(WRITTEN) and BOOT.exists():
            self.state = WRITTEN
            return
        why = "the machine stopped before its last updates were on the disk"
        if said.startswith(UPDATING.encode()):
            why = "a process ended in the middle of an update of it"
        cure = (
            f"write its base weights again (zokern.mapped.write), or copy them here and remove {self.path.name}; then make the run's steps"
        )
        raise BadInput(f"{str(self.weights)!r} is damaged: {why}: {cure} again with zokern.Trajectory.replay")

    def write(self, state: str) -> None:
        """Say so from now on, whenever this process ends; of clean weights also whenever the machine stops."""
        with writing(self.path):
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                os.pwrite(file, _record(state), 0)
                if self.state is None:
                    os.fsync(file)
                    _sync_folder(self.path.parent)
            finally:
                os.close(file)
        self.state = state

    def remove(self) -> None:
        """The weights are on the disk."""
        with writing(self.path):
            self.path.unlink(missing_ok=True)
            _sync_folder(self.path.parent)
        self.state = None


def _record(state: str) -> bytes:
    """Of one length, so that each is written over the one before at once."""
    boot = BOOT.read_text().strip() if BOOT.exists() else ""
    return f"{state:<8} {boot:<40}\n".encode()


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
