"""What GPU kernels read: a table of spans, pieces of tensors that one program each works on, and the keys."""

import torch

from .passes import Keys, words
from .tables import COLUMN, State, Table, to_device

BLOCK = 4096  # elements that a program takes at a time; of a tensor that is one line, every span but the last is a multiple of it
# A launch is cut into about so many programs: 15 for each that a large GPU runs at a time, so that few wait for the last ones; few enough
# for a table of 2.5 MiB; and in a model of 1e9 parameters or more each runs through 7 blocks or more once its keys are loaded.
PROGRAMS = 32768


def spans(table: Table) -> torch.Tensor:
    """int64 [programs, 10] on the table's device, a ``tables.Row`` each. Made once for each table."""
    return table.cached("spans", lambda: to_device(cut(table.rows, table.dtype.itemsize, table.stored.itemsize), table.device))


def state_spans(table: Table, state: State) -> torch.Tensor:
    """int64 [programs, slots] on the table's device: where the state of each span begins. Made once for each state."""
    return state.cached("spans", lambda: to_device(cut_state(table.rows, state.addresses, state.dtype.itemsize), table.device))


def cut(rows: torch.Tensor, itemsize: int, out_itemsize: int) -> torch.Tensor:
    """Cuts the rows of a table into about PROGRAMS rows: of whole blocks, but a tensor's last; or of whole lines, where they are short."""
    row, start, count = pieces(rows)
    cut = rows[row]
    address, pitch, out, out_pitch, numel, columns, first, step = cut.T[:8]  # views
    line, column = start // columns, start % columns
    address += (line * pitch + column) * itemsize
    out += (line * out_pitch + column) * out_itemsize
    first += line * step + column
    numel.copy_(count)
    columns.copy_(torch.minimum(columns, count))
    return cut


def cut_state(rows: torch.Tensor, addresses: torch.Tensor, itemsize: int) -> torch.Tensor:
    """Where ``cut`` cuts ``rows``: the addresses [rows, slots] of what belongs to each piece's first element."""
    row, start, _ = pieces(rows)
    return addresses[row] + start[:, None] * itemsize


def pieces(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """-> for each piece: its row, the element of the row that it starts at, how many elements it has."""
    numel, columns = rows[:, COLUMN["numel"]], rows[:, COLUMN["columns"]]
    blocks = (numel + BLOCK - 1) // BLOCK
    wanted = (blocks * PROGRAMS // blocks.sum().clamp(min=1)).clamp(min=1)
    most = ((blocks + wanted - 1) // wanted * BLOCK).clamp(min=BLOCK)
    # Lines as long as a piece are cut each for itself; of shorter ones a piece has several, in whole blocks.
    together = columns * (BLOCK // torch.gcd(columns, torch.tensor(BLOCK)))
    apart = (columns >= most) | (together >= 1 << 31)  # kernels number the elements of several lines by 32 bits
    most = torch.where(apart | (columns >= numel), most, (most + together - 1) // together * together)
    line = torch.where(apart, columns, numel).clamp(min=1)
    row, begin = parted(numel, line)
    inside, start = parted(line[row], most[row])
    row, start = row[inside], start + begin[inside]
    return row, start, torch.minimum(most[row], begin[inside] + line[row] - start)


def parted(size: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each of n sizes in steps -> for each step: which of the n it is in, and where it starts there."""
    count = (size + step - 1) // step
    which = torch.arange(len(size)).repeat_interleave(count)
    return which, (torch.arange(len(which)) - (count.cumsum(0) - count)[which]) * step[which]


def pack(keys: Keys) -> torch.Tensor:
    """Keys as int32 [len(keys), 4] on the host: seed mod 2^32, seed >> 32, step, stream."""
    halves = [(seed & 0xFFFFFFFF, seed >> 32, step, stream) for seed, step, stream in words(keys)]
    return torch.tensor(halves, dtype=torch.int64).view(-1, 4).to(torch.int32)  # the lower 32 bits
