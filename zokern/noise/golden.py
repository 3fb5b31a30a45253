"""golden.txt, values of the noise that an implementation independent of this one wrote: every backend must give their bits."""

from importlib.resources import files

from .key import NoiseKey


def golden() -> list[tuple[NoiseKey, int, list[int]]]:
    """(key, index of the first element, the bits of float32 z from there on) of each record: of normals, then of signs."""
    records: list[tuple[NoiseKey, int, list[int]]] = []
    for line in files(__package__).joinpath("golden.txt").read_text(encoding="ascii").splitlines():
        if line.startswith(("key", "signs")):
            seed, step, stream, first, _ = map(int, line.split()[1:])
            records.append((NoiseKey(seed, step, stream), first, []))
        elif line[0] in "+-":
            records[-1][2].extend(0x3F800000 if sign == "+" else 0xBF800000 for sign in line)
        elif not line.startswith("#"):
            records[-1][2].extend(int(word, 16) for word in line.split())
    return records
